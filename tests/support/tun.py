# SPDX-License-Identifier: Apache-2.0
"""A TCP peer whose every segment the test writes itself, at the far end of a TUN device in a network namespace."""

from __future__ import annotations

import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.actor import Actor

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "10.77.0.1"
PEER = "10.77.0.2"
PEER_PORT = 7000
FIN, SYN, RST, ACK = 1, 2, 4, 16
MASK = (1 << 32) - 1

_SETUP = """
import fcntl, subprocess
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH", b"tun0", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
subprocess.run("ip link set lo up; ip addr add 10.77.0.1/24 dev tun0; ip link set tun0 up", shell=True, check=True)
with socket.socket(fileno={channel}) as channel:
    socket.send_fds(channel, [b"+"], [tun])
os.close(tun)
"""


def why_not() -> str:
    """Why there can be no TUN device here, or nothing."""
    return "" if os.geteuid() == 0 and Path("/dev/net/tun").exists() else "needs root and /dev/net/tun"


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment from the actor."""

    flags: int
    sequence: int
    acknowledged: int
    port: int
    payload: bytes


def _checksum(data: bytes) -> int:
    words = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class TunPeer:
    """10.77.0.2: answers what the test says, and nothing else."""

    def __init__(self, tun: int) -> None:
        self._tun = tun
        self.port = 0  # the actor's, once a segment of it was seen

    def receive(self) -> Segment:
        """The next TCP segment of the actor."""
        while True:
            readable, _, _ = select.select([self._tun], [], [], 10)
            assert readable, "no segment came"
            packet = os.read(self._tun, 65536)
            if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                continue
            tcp = packet[(packet[0] & 15) * 4 :]
            port, _, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", tcp)
            self.port = port
            return Segment(flags, sequence, acknowledged, port, tcp[(offset >> 4) * 4 :])

    def until(self, flags: int) -> Segment:
        """The next segment that has all these flags."""
        while True:
            segment = self.receive()
            if segment.flags & flags == flags:
                return segment

    def send(self, flags: int, sequence: int, acknowledged: int = 0, payload: bytes = b"") -> None:
        """One segment to the actor."""
        ends = socket.inet_aton(PEER) + socket.inet_aton(HERE)
        tcp = struct.pack(
            "!HHIIBBHHH", PEER_PORT, self.port, sequence & MASK, acknowledged & MASK, 5 << 4, flags, 65535, 0, 0
        )
        pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp) + len(payload))
        padded = pseudo + tcp + payload + b"\0" * (len(payload) % 2)
        tcp = tcp[:16] + struct.pack("!H", _checksum(padded)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(payload), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
        ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
        os.write(self._tun, ip + tcp + payload)

    def accept(self) -> tuple[int, int]:
        """Answers the actor's SYN. Returns the next sequence numbers: ours and the actor's."""
        syn = self.until(SYN)
        self.send(SYN | ACK, 1000, syn.sequence + 1)
        self.until(ACK)
        return 1001, (syn.sequence + 1) & MASK


def actor_with_peer() -> Iterator[tuple[Actor, TunPeer]]:
    """A fixture's body: an actor in a network namespace of its own, and the peer it can reach at 10.77.0.2."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Actor(wrapper=["unshare", "--net"], pass_fds=[theirs.fileno()]) as actor:
        actor.do(_SETUP.replace("{channel}", str(theirs.fileno())))
        assert actor.errno == 0
        _, (tun,), _, _ = socket.recv_fds(ours, 1, 1)
        try:
            yield actor, TunPeer(tun)
        finally:
            os.close(tun)
