# SPDX-License-Identifier: Apache-2.0
"""The kernel boundary: programs, maps, rings, records."""
