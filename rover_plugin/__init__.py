# SPDX-License-Identifier: Apache-2.0
"""Network access logs from eBPF: the `access_log` module and the host that runs it."""

__version__ = "0.1.0"
