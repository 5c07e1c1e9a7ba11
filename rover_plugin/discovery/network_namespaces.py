# SPDX-License-Identifier: Apache-2.0
"""The network namespaces of this host, netlink sockets inside them, and which of them are joined by a cable."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final

from rover_plugin.discovery.procfs import PROC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Where tools keep namespaces that no process need be in: ip-netns(8), dockerd.
_KEPT: Final = ("/run/netns", "/run/docker/netns")
_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_NLMSG_ERROR: Final = 2  # include/uapi/linux/netlink.h
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 1
_NLM_F_DUMP: Final = 0x300
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr
_NESTED_AND_ORDER: Final = 0xC000  # NLA_F_NESTED | NLA_F_NET_BYTEORDER
_ERROR: Final = struct.Struct("=i")
_ANSWER_BYTES: Final = 1 << 16
_PATIENCE_S: Final = 1.0
_RTM_GETLINK: Final = 18  # include/uapi/linux/rtnetlink.h
_RTM_GETNSID: Final = 90
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg
_IFLA_LINK_NETNSID: Final = 37  # include/uapi/linux/if_link.h
_NSID: Final = struct.Struct("=B3x")  # rtgenmsg
_NETNSA_NSID: Final = 1  # include/uapi/linux/net_namespace.h
_NETNSA_FD: Final = 3

_libc = ctypes.CDLL(None, use_errno=True)


def network_namespaces(proc: str = PROC) -> dict[int, str]:
    """Inode number to path of every network namespace that a process is in, or that a tool keeps.

    Costs a stat(2) for each process.
    """
    paths = [f"{folder}/{name}" for folder in _KEPT for name in _names(folder)]
    paths += [f"{proc}/{name}/ns/net" for name in _names(proc) if name.isdecimal()]
    found: dict[int, str] = {}
    for path in paths:
        try:
            found.setdefault(os.stat(path).st_ino, path)  # noqa: PTH116  thousands of calls
        except OSError:
            continue
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  no path needed
    except OSError:
        return []


def netlink_socket(namespace: str, protocol: int) -> socket.socket:
    """A netlink socket that belongs to a network namespace, and keeps it alive.

    Args:
        namespace: path of the namespace.
        protocol: such as NETLINK_SOCK_DIAG.

    Raises:
        OSError: the kernel does not have the protocol, or we may not enter the namespace.
    """
    # A socket belongs to the namespace its thread was in when it was made.
    if os.stat(namespace).st_ino == os.stat("/proc/thread-self/ns/net").st_ino:  # noqa: PTH116  once a scan or second
        return _make_socket(protocol)
    # A thread that may enter a namespace may not always come back (user_namespaces(7)), so one is spent for it.
    made: list[socket.socket | OSError] = []
    thread = threading.Thread(target=_make_socket_in, args=(namespace, protocol, made), name="netlink", daemon=True)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


def _make_socket(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    made.settimeout(_PATIENCE_S)
    return made


def _make_socket_in(namespace: str, protocol: int, made: list[socket.socket | OSError]) -> None:
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), namespace)
        finally:
            os.close(descriptor)
        made.append(_make_socket(protocol))
    except OSError as error:
        made.append(error)


def attribute(kind: int, content: bytes) -> bytes:
    """An nlattr, padded."""
    return (_ATTRIBUTE.pack(len(content) + _ATTRIBUTE.size, kind) + content).ljust(
        (len(content) + _ATTRIBUTE.size + 3) & ~3, b"\0"
    )


def attributes(content: bytes) -> dict[int, bytes]:
    """The attributes in a message or in a nested attribute, by type."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & ~_NESTED_AND_ORDER] = content[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def ask(netlink: socket.socket, kind: int, request: bytes, *, dump: bool = False) -> Iterator[bytes]:
    """Sends a request; yields the contents of the messages that answer it, one unless it is a `dump`.

    Raises:
        OSError: the kernel says no, or nothing in time.
    """
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    netlink.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, 0, 0) + request)
    while True:
        answer = netlink.recv(_ANSWER_BYTES)
        at = 0
        while at + _HEADER.size <= len(answer):
            size, kind, _, _, _ = _HEADER.unpack_from(answer, at)
            body = at + _HEADER.size
            if kind == _NLMSG_DONE:
                return
            if size < _HEADER.size or (kind == _NLMSG_ERROR and body + _ERROR.size > len(answer)):
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
            if kind == _NLMSG_ERROR:
                (code,) = _ERROR.unpack_from(answer, body)
                raise OSError(abs(code), os.strerror(abs(code)))
            yield answer[body : at + size]
            if not dump:
                return
            at += (size + 3) & ~3


def ask_one(netlink: socket.socket, kind: int, request: bytes) -> bytes:
    """Sends a request that has one answer, and returns its content.

    Raises:
        OSError: as for `ask`; an answer without content is one, too.
    """
    for answer in ask(netlink, kind, request):
        return answer
    raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))


def neighbours(namespace: str, others: Mapping[int, str]) -> frozenset[int]:
    """Inode numbers of those of `others` in which an interface of a namespace has its other end (veth(4)).

    Raises:
        OSError: as for `netlink_socket`.
    """
    with netlink_socket(namespace, socket.NETLINK_ROUTE) as route:
        far = set()
        for link in ask(route, _RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0), dump=True):
            identity = attributes(link[_LINK.size :]).get(_IFLA_LINK_NETNSID)
            if identity is not None:
                far.add(identity)
        if not far:
            return frozenset()
        return frozenset(inode for inode, path in others.items() if _identity(route, path) in far)


def _identity(route: socket.socket, path: str) -> bytes | None:
    """What a namespace is called within the one a socket belongs to, if it has a name there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        request = _NSID.pack(socket.AF_UNSPEC) + attribute(_NETNSA_FD, struct.pack("=I", descriptor))
        answer = ask_one(route, _RTM_GETNSID, request)
    finally:
        os.close(descriptor)
    return attributes(answer[_NSID.size :]).get(_NETNSA_NSID)
