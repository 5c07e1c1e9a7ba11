# SPDX-License-Identifier: Apache-2.0
"""Listening TCP sockets of a network namespace, from the kernel's socket diagnosis (sock_diag(7)).

The kernel walks its table of listeners only. /proc/net/tcp walks all sockets, which on a busy server are tens of
thousands in TIME_WAIT: measured with 17 000 of them, 0.3 ms against 90 ms.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from rover_plugin.discovery.network_namespaces import ask, netlink_socket

_NETLINK_SOCK_DIAG: Final = 4  # include/uapi/linux/netlink.h
_SOCK_DIAG_BY_FAMILY: Final = 20  # include/uapi/linux/sock_diag.h
_LISTEN: Final = 1 << 10  # TCP_LISTEN, include/net/tcp_states.h
_REQUEST: Final = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, no socket
_PORT: Final = struct.Struct(">4xH")  # of inet_diag_msg: id.idiag_sport
_INODE: Final = struct.Struct("=68xI")  # and idiag_inode


def listening_sockets(namespace: str = "/proc/thread-self/ns/net") -> dict[int, int]:
    """Inode to port of every listening TCP socket, IPv4 and IPv6.

    Args:
        namespace: path of the network namespace to look into.

    Raises:
        OSError: the kernel cannot do this, or we may not enter the namespace.
    """
    with netlink_socket(namespace, _NETLINK_SOCK_DIAG) as asked:
        return _dump(asked, socket.AF_INET) | _dump(asked, socket.AF_INET6)


def _dump(asked: socket.socket, family: int) -> dict[int, int]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTEN)
    answers = ask(asked, _SOCK_DIAG_BY_FAMILY, request, dump=True)
    return {_INODE.unpack_from(answer)[0]: _PORT.unpack_from(answer)[0] for answer in answers}
