# SPDX-License-Identifier: Apache-2.0
"""What the host keeps of root's privileges (`privileges.*`)."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.capture.confinement import keep_capabilities, names_of
from rover_plugin.capture.privileges import effective_capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

    from rover_plugin.settings import Settings

log = structlog.get_logger(__name__)

# What each is for:
KEPT: Final = {
    "bpf": "load programs, read and write their maps",
    "perfmon": "attach them; they read kernel memory",
    "sys_ptrace": "look at other users' processes in /proc",
    "dac_read_search": "list their descriptors, read the names of containers",
    "sys_admin": "enter the network namespaces of containers, count runs of BPF programs",
    "net_admin": "read address translations, and make the links between our processes large",
}
# Before 5.11 BPF maps count as locked memory.
_MEMORY: Final = ("ipc_lock", "sys_resource")
_KERNEL_WITHOUT_MEMLOCK: Final = (5, 11)


def kept_capabilities() -> list[str]:
    """Names of the capabilities that the host keeps on this kernel."""
    release = [int(part) for part in re.findall(r"\d+", os.uname().release)[:2]]
    return [*KEPT, *(_MEMORY if tuple(release) < _KERNEL_WITHOUT_MEMLOCK else ())]


def prepare_process(context: click.Context, settings: Settings) -> None:
    """Does what the command line's root was given to do to its process (`obj`), before modules run in it."""
    prepare: Callable[[Settings], None] | None = context.find_root().obj
    if prepare is not None:
        prepare(settings)


def give_up_privileges(settings: Settings) -> None:
    """Gives up every other capability, and becomes `privileges.user`; before any thread is started.

    Raises:
        PrivilegeError: there is no such user, or the kernel refuses.
    """
    user = settings.text("privileges.user")
    if not settings.flag("privileges.drop") and not user:
        return
    keep_capabilities(kept_capabilities(), user=user)
    log.debug("privileges_kept", capabilities=names_of(effective_capabilities()), uid=os.geteuid())
