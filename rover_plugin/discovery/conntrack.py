# SPDX-License-Identifier: Apache-2.0
"""The kernel's table of translated connections, nf_conntrack, asked for one connection at a time over netlink.

One lookup in a hash table a question; the table is never dumped, which on a router is a million entries.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, NamedTuple

from rover_plugin.discovery.network_namespaces import ask_one, attribute, attributes, netlink_socket

_NETLINK_NETFILTER: Final = 12  # include/uapi/linux/netlink.h
# include/uapi/linux/netfilter/nfnetlink_conntrack.h
_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET: Final = _SUBSYSTEM | 1  # IPCTNL_MSG_CT_GET
_GET_STATS: Final = _SUBSYSTEM | 5  # IPCTNL_MSG_CT_GET_STATS
_ORIGINAL: Final = 1  # CTA_TUPLE_ORIG
_REPLY: Final = 2  # CTA_TUPLE_REPLY
_ADDRESSES: Final = 1  # CTA_TUPLE_IP
_PROTOCOL: Final = 2  # CTA_TUPLE_PROTO
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_NUM, _SRC_PORT, _DST_PORT
_ENTRIES: Final = 1  # CTA_STATS_GLOBAL_ENTRIES
_NESTED: Final = 0x8000
_FAMILY: Final = struct.Struct("=BBH")  # nfgenmsg
_ADDRESS_SIZES: Final = frozenset((4, 16))
_PORT: Final = struct.Struct(">H")


class Tuple(NamedTuple):
    """Source and destination of the packets of one direction; addresses packed, ports as numbers."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


def open_table(namespace: str) -> socket.socket | None:
    """A socket to ask the table of a network namespace; None where that is empty.

    Raises:
        OSError: the kernel has no such table, or we may not ask.
    """
    table = netlink_socket(namespace, _NETLINK_NETFILTER)
    try:
        answer = ask_one(table, _GET_STATS, _FAMILY.pack(socket.AF_UNSPEC, 0, 0))
        entries = attributes(answer[_FAMILY.size :]).get(_ENTRIES)
        if entries is not None and not int.from_bytes(entries):
            table.close()
            return None
    except BaseException:
        table.close()
        raise
    return table


def dialled_to_real(table: socket.socket, client: Tuple) -> Tuple | None:
    """What the packets that a client sends as `client` look like behind the table; None if it does not have them.

    Raises:
        OSError: the kernel does not answer.
    """
    entry = _look_up(table, _ORIGINAL, client)
    if entry is None or entry[0] != client:
        return None
    reply = entry[1]
    return Tuple(reply.destination, reply.destination_port, reply.source, reply.source_port)


def seen_to_real(table: socket.socket, server: Tuple) -> Tuple | None:
    """What the packets that a server sends as `server` look like at the client; None if the table does not have them.

    Raises:
        OSError: the kernel does not answer.
    """
    entry = _look_up(table, _REPLY, server)
    if entry is None or entry[1] != server:
        return None
    original = entry[0]
    return Tuple(original.destination, original.destination_port, original.source, original.source_port)


def _look_up(table: socket.socket, direction: int, packets: Tuple) -> tuple[Tuple, Tuple] | None:
    family = socket.AF_INET if len(packets.source) == 4 else socket.AF_INET6
    try:
        answer = ask_one(table, _GET, _FAMILY.pack(family, 0, 0) + _pack(direction, packets))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    found = attributes(answer[_FAMILY.size :])
    original, reply = _unpack(found.get(_ORIGINAL)), _unpack(found.get(_REPLY))
    return (original, reply) if original is not None and reply is not None else None


def _pack(direction: int, packets: Tuple) -> bytes:
    # CTA_IP_V4_SRC and _DST are 1 and 2, CTA_IP_V6_SRC and _DST 3 and 4.
    first = 1 if len(packets.source) == 4 else 3
    addresses = attribute(first, packets.source) + attribute(first + 1, packets.destination)
    protocol = (
        attribute(_NUMBER, bytes([socket.IPPROTO_TCP]))
        + attribute(_SOURCE_PORT, _PORT.pack(packets.source_port))
        + attribute(_DESTINATION_PORT, _PORT.pack(packets.destination_port))
    )
    return attribute(
        direction | _NESTED, attribute(_ADDRESSES | _NESTED, addresses) + attribute(_PROTOCOL | _NESTED, protocol)
    )


def _unpack(content: bytes | None) -> Tuple | None:
    if content is None:
        return None
    parts = attributes(content)
    addresses, protocol = attributes(parts.get(_ADDRESSES, b"")), attributes(parts.get(_PROTOCOL, b""))
    source, destination = addresses.get(1) or addresses.get(3), addresses.get(2) or addresses.get(4)
    ports = protocol.get(_SOURCE_PORT), protocol.get(_DESTINATION_PORT)
    if source is None or destination is None or ports[0] is None or ports[1] is None:
        return None
    if len(source) not in _ADDRESS_SIZES or len(destination) != len(source):
        return None
    return Tuple(source, int.from_bytes(ports[0]), destination, int.from_bytes(ports[1]))
