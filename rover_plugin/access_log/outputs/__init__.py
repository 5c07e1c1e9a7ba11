# SPDX-License-Identifier: Apache-2.0
"""Where messages go: skywalking, console, jsonl."""
