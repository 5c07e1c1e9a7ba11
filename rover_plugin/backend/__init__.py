# SPDX-License-Identifier: Apache-2.0
"""The SkyWalking OAP: how to reach it, how to speak to it, who we are to it."""
