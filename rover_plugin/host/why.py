# SPDX-License-Identifier: Apache-2.0
"""What `rover-host why` looks at: the first reason why a process is, or is not, in the access log.

What the running host decided is asked of its process feed. Where none runs, what one with these settings would decide.
Each question is a function that answers, or leaves it to the next.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.address_book import AddressBook
from rover_plugin.access_log.options import feed_address
from rover_plugin.capture.session import MAX_PROCESSES
from rover_plugin.discovery.containers import contained
from rover_plugin.discovery.feed_client import FeedClient, FeedState
from rover_plugin.discovery.listeners import listening_ports
from rover_plugin.discovery.local_finder import local_finder
from rover_plugin.discovery.model import Process, ProcessKey
from rover_plugin.discovery.procfs import PROC, ProcessFacts, read_process
from rover_plugin.discovery.sockets import open_sockets
from rover_plugin.discovery.table import Change, Removed
from rover_plugin.host.check import Status, privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rover_plugin.settings import Settings

_FEED_S: Final = 5.0
_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
_ELF_32_BIT: Final = b"\x7fELF\x01"  # elf(5), EI_CLASS
# Servers on these speak TLS, whoever they are (IANA, and custom for 6443, 8443, 9443, 10250).
TLS_PORTS: Final = frozenset(
    (443, 465, 563, 636, 853, 989, 990, 992, 993, 994, 995, 5061, 5671, 6443, 8443, 9443, 10250)
)
_ROVER: Final = re.compile(r"(^|[/ ])rover-host( |$)| rover_plugin\.[a-z_.]+$")  # or its workers
_SETTINGS_HINT: Final = "give the running host's --config files to this command, too, to see which setting it was"


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a process is logged, and why.

    Attributes:
        reason: a constant name, such as excluded_by_rule.
        asked: who said so: address of the running host's feed, or "settings" if none runs.
    """

    pid: int
    logged: bool
    reason: str
    detail: str
    hint: str = ""
    asked: str = "settings"


_NOBODY: Final = ProcessFacts(ProcessKey(0, 0))


@dataclass(slots=True)
class _Case:
    """What is known of the process, more with each question.

    Attributes:
        host_pid: of the running host, 0 if none runs or it cannot be told.
        listed: what the feed says of all processes, by pid; None if no host runs.
    """

    pid: int
    settings: Settings
    asked: str = "settings"
    host_pid: int = 0
    listed: dict[int, Process] | None = None
    facts: ProcessFacts = _NOBODY
    process: Process | None = None

    def no(self, reason: str, detail: str, hint: str = "") -> Answer:
        return Answer(self.pid, logged=False, reason=reason, detail=detail, hint=hint, asked=self.asked)


def why(pid: int, settings: Settings) -> Answer:
    """The first reason why a process is, or is not, logged.

    Raises:
        SettingsError: a rule in the settings is wrong.
    """
    case = _Case(pid, settings)
    for question in _QUESTIONS:
        answer = question(case)
        if answer is not None:
            return answer
    return _logged(case)


# -- what it is --


def _exists(case: _Case) -> Answer | None:
    try:
        status = Path(f"{PROC}/{case.pid}/status").read_text()
        stat = Path(f"{PROC}/{case.pid}/stat").read_text()
    except OSError:
        return case.no("no_such_process", f"there is no process {case.pid}")
    leader = int(_number(status, "Tgid"))
    if leader != case.pid:
        return case.no("thread", f"{case.pid} is a thread of process {leader}", f"ask for {leader}")
    flags = int(stat.rpartition(")")[2].split()[6])
    if flags & _PF_KTHREAD:
        return case.no(
            "kernel_thread", f"{_number(status, 'Name')} is a thread of the kernel, which makes no system calls"
        )
    facts = read_process(case.pid)
    if facts is None:
        return case.no(
            "ended", f"process {case.pid} has ended; its parent {_number(status, 'PPid')} has not been told yet"
        )
    case.facts = contained(facts)
    return None


def _number(status: str, key: str) -> str:
    found = re.search(rf"^{key}:\s*(\S+)", status, re.MULTILINE)
    return found[1] if found else "0"


# -- who decides --


def _ask_feed(case: _Case) -> Answer | None:
    address = feed_address(case.settings)
    named = bool(case.settings.text("access_log.feed"))
    try:
        case.host_pid = _server_of(address)
    except PermissionError:
        return case.no("not_root", f"this user may not ask the running host at {address}", "run this command as root")
    except OSError as error:
        if named:
            hint = "start the host that serves it, or set access_log.feed to where it is"
            return case.no("feed_unreachable", f"nobody serves the process feed at {address} ({error.strerror})", hint)
        return None
    listed = _read_feed(address)
    if listed is None:
        hint = "see the running host's log: it accepts connections there, but says nothing"
        return case.no("feed_unreachable", f"the process feed at {address} does not answer", hint)
    case.asked, case.listed = address, listed
    return None


def _server_of(address: str) -> int:
    """Process that serves a feed; 0 where that cannot be told."""
    if address.startswith(("/", "unix:")):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_FEED_S)
            probe.connect(address.removeprefix("unix:"))
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _FEED_S).close()
    return 0


def _read_feed(address: str) -> dict[int, Process] | None:
    listed: dict[int, Process] = {}
    live = threading.Event()

    def take(change: Change) -> None:
        if isinstance(change, Removed):
            listed.pop(change.key.pid, None)
        elif not change.process.exited:
            listed[change.process.key.pid] = change.process

    client = FeedClient(address)
    client.follow(take, lambda state: live.set() if state is FeedState.LIVE else None)
    answered = live.wait(_FEED_S)
    client.close()
    return listed if answered else None


def _is_rover(case: _Case) -> Answer | None:
    pid = case.pid
    while pid > 1:
        facts = read_process(pid)
        if facts is None:
            return None
        if pid == case.host_pid or case.pid == os.getpid() or _ROVER.search(" ".join(facts.cmdline[:5])):
            part = "rover-host itself" if pid == case.pid else f"a part of rover-host, process {pid}"
            return case.no("rover_itself", f"process {case.pid} is {part}: it is not logged, or logs would make logs")
        pid = facts.parent
    return None


def _may_capture(case: _Case) -> Answer | None:
    if case.listed is not None:
        return None  # the running host may
    for finding in privileges(case.settings):
        if finding.status is Status.FAIL:
            return case.no(
                "not_root", f"no host runs, and one of this user could not use BPF ({finding.detail})", finding.hint
            )
    if not case.settings.flag("access_log.active"):
        return case.no(
            "access_log_inactive", "no host runs, and access_log.active is false", "set access_log.active = true"
        )
    if not case.settings.flag("process_discovery.local.active"):
        hint = "set process_discovery.local.active = true"
        return case.no("no_finder_active", "no host runs, and process_discovery.local.active is false", hint)
    return None


# -- whether it is chosen --


def _is_selected(case: _Case) -> Answer | None:
    facts = case.facts
    if case.listed is not None:
        listed = case.listed.get(case.pid)
        if listed is None or listed.key != facts.key:
            detail = f"the running host does not list process {case.pid}: it has just started, or no finder sees it"
            return case.no("not_listed", detail, "ask again; if it stays so, see the host's log")
        case.process = listed
        return None if listed.entities else (_rule_against(case) or _decided_elsewhere(case))
    answer = _rule_against(case)
    if answer is None:
        finder = local_finder(case.settings, case.settings.text("core.cluster_name"))
        case.process = Process(facts.key, facts.exe, facts.cmdline, entities=finder.entities(_with_ports(facts)))
    return answer


def _with_ports(facts: ProcessFacts) -> ProcessFacts:
    return replace(facts, ports=listening_ports([facts.key.pid]).get(facts.key.pid, frozenset()))


def _rule_against(case: _Case) -> Answer | None:
    """The rule of these settings that leaves the process out."""
    finder = local_finder(case.settings, case.settings.text("core.cluster_name"))
    facts = _with_ports(case.facts)
    for rule in finder.exclude:
        if rule.matches(facts):
            where = case.settings.origin("process_discovery.local.exclude")
            detail = f"process_discovery.local.exclude has the rule {rule.text!r} (set by {where})"
            return case.no("excluded_by_rule", detail, "take the rule out to have the process logged")
    if finder.include and not any(rule.matches(facts) for rule in finder.include):
        where = case.settings.origin("process_discovery.local.include")
        rules = ", ".join(repr(rule.text) for rule in finder.include)
        detail = f"it fits no rule of process_discovery.local.include: {rules} (set by {where})"
        return case.no("not_included", detail, "add a rule that it fits")
    return None


def _decided_elsewhere(case: _Case) -> Answer:
    return case.no(
        "not_selected", "the running host's rules leave it out, and the settings here do not say which", _SETTINGS_HINT
    )


def _is_excluded(case: _Case) -> Answer | None:
    settings = case.settings
    namespaces, clusters = settings.items("access_log.exclude_namespaces"), settings.items("access_log.exclude_cluster")
    if case.process is None:
        return None
    reason = AddressBook(namespaces, clusters).exclusion(case.process)
    if not reason:
        return None
    entity = case.process.entities[0]
    what, key = (
        (f"namespace {entity.namespace}", "access_log.exclude_namespaces")
        if reason == "excluded_namespace"
        else (f"service {entity.service}", "access_log.exclude_cluster")
    )
    detail = f"{what} is excluded by {key} (set by {settings.origin(key)})"
    return case.no(reason, detail, f"take it out of {key} to have the process logged")


def _has_room(case: _Case) -> Answer | None:
    watched = sum(1 for process in (case.listed or {}).values() if process.entities)
    if watched <= MAX_PROCESSES:
        return None
    detail = f"{watched} processes are to be watched, and the kernel side has room for {MAX_PROCESSES}"
    return case.no("process_table_full", detail, "choose fewer with process_discovery.local.include or exclude")


# -- whether it says anything that can be seen --


def _is_64_bit(case: _Case) -> Answer | None:
    try:
        with Path(f"{PROC}/{case.pid}/exe").open("rb") as program:
            is_32_bit = program.read(len(_ELF_32_BIT)) == _ELF_32_BIT
    except OSError:
        return None
    if not is_32_bit:
        return None
    return case.no("32_bit", f"{case.facts.exe} is a 32-bit program: its system calls are other ones, and are not read")


def _speaks_tcp(case: _Case) -> Answer | None:
    try:
        sockets = open_sockets(case.pid)
    except PermissionError:
        return case.no("not_root", "this user may not look at the process's sockets", "run this command as root")
    except OSError:
        return case.no("no_such_process", f"process {case.pid} has ended meanwhile")
    if sockets.io_uring:
        return case.no("io_uring", "it uses io_uring: what it sends and receives that way is counted, and not read")
    if sockets.tcp:
        ports = sockets.service_ports()
        if ports <= TLS_PORTS:
            named = ", ".join(map(str, sorted(ports)))
            return case.no(
                "tls_only", f"all its connections are to ports of TLS ({named}), and what is encrypted is not read"
            )
        return None
    if not sockets.others:
        return case.no("no_sockets", "it has no sockets now; it will be logged when it speaks HTTP over TCP")
    if sockets.others == {"unix"}:
        return case.no("unix_sockets_only", "it has unix sockets only, and only TCP is read")
    kinds = ", ".join(sorted(sockets.others))
    return case.no("no_tcp", f"it has no TCP sockets, only {kinds}; it will be logged when it speaks HTTP over TCP")


_QUESTIONS: Final[Sequence[Callable[[_Case], Answer | None]]] = (
    _exists,
    _ask_feed,
    _is_rover,
    _may_capture,
    _is_selected,
    _is_excluded,
    _has_room,
    _is_64_bit,
    _speaks_tcp,
)


def _logged(case: _Case) -> Answer:
    entities = case.process.entities if case.process is not None else ()
    service = f" as service {entities[0].service}" if entities else ""
    if case.listed is not None:
        return Answer(
            case.pid, logged=True, reason="logged", detail=f"the running host watches it{service}", asked=case.asked
        )
    detail = f"a host with these settings would watch it{service}; none runs now"
    return Answer(
        case.pid, logged=True, reason="would_be_logged", detail=detail, hint="rover-host --modules access_log"
    )
