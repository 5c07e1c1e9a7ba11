# SPDX-License-Identifier: Apache-2.0
"""Module `access_log`: records in, access logs out."""
