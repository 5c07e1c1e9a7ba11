# SPDX-License-Identifier: Apache-2.0
"""The host: command line, module registry, lifecycle and signals of `rover-host`."""
