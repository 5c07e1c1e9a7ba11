# SPDX-License-Identifier: Apache-2.0
"""Counters, the loss ledger, and where they can be read."""
