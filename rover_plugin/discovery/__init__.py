# SPDX-License-Identifier: Apache-2.0
"""Module `process_discovery`: the processes of this host, named, served as a feed and reported to the backend."""
