# SPDX-License-Identifier: Apache-2.0
"""Protocol analysers: sans-I/O parsers that turn a connection's bytes into exchanges (design §4)."""
