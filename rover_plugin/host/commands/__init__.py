# SPDX-License-Identifier: Apache-2.0
"""The commands of `rover-host`, one a file: the file's name is the command's, `command` in it is the click command."""
