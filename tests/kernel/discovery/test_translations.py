# SPDX-License-Identifier: Apache-2.0
"""Whom a translated connection really goes to is found along the way that its packets take, and only there."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rover_plugin.access_log.link import ConnectionFacts
from rover_plugin.access_log.translations import Translations
from rover_plugin.discovery.network_namespaces import neighbours, network_namespaces
from tests.support.network import Network, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rover_plugin.capture.recording import Translation

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "-")

DNAT = """
table ip nat {
  chain pre { type nat hook prerouting priority -100; ip daddr 10.7.0.1 tcp dport 8080 dnat to 10.6.0.2:80; }
  chain post { type nat hook postrouting priority 100; oifname "to-server" masquerade; }
}
"""
# Connects from a port of its own and says when it is connected; ends with its input.
CLIENT = """
import socket, sys
one = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5, (sys.argv[3], int(sys.argv[4])))
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network("tr") as made:
        made.add("client", "router", "server")
        made.join("client", "10.7.0.2/24", "router", "10.7.0.1/24")
        made.join("router", "10.6.0.1/24", "server", "10.6.0.2/24")
        made.route("client", "10.7.0.1")
        made.set("router", "net.ipv4.ip_forward=1")
        yield made


def asked(*questions: ConnectionFacts) -> list[Translation]:
    """The answers to all questions."""
    said: queue.Queue[Sequence[Translation]] = queue.Queue()
    subject = Translations(said.put)
    try:
        for question in questions:
            subject.ask(question)
        answers: list[Translation] = []
        while len(answers) < len(questions):
            answers += said.get(timeout=20)
        return answers
    finally:
        subject.close()


def end(netns: int, local: tuple[str, int], remote: tuple[str, int], role: str = "client") -> ConnectionFacts:
    packed = {"local": socket.inet_aton(local[0]), "remote": socket.inet_aton(remote[0])}
    return ConnectionFacts(
        7, 1, netns, role, tls=False, ipv6=False, local_port=local[1], remote_port=remote[1], **packed
    )


def inode(network: Network, name: str) -> int:
    return Path(network.path(name)).stat().st_ino


@pytest.fixture
def connected(network: Network) -> Iterator[Network]:
    """The client has connected from 10.7.0.2:5000 to what is behind 10.7.0.1:8080."""
    network.rules("router", DNAT)
    with network.serving("server", "10.6.0.2", 80):
        command = [sys.executable, "-c", CLIENT, "10.7.0.1", "8080", "10.7.0.2", "5000"]
        with subprocess.Popen(
            network.inside("client", *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "connected\n"
            yield network
            client.communicate("")


def test_the_client_is_told_whom_it_reached_and_the_server_who_called(connected: Network) -> None:
    client = end(inode(connected, "client"), ("10.7.0.2", 5000), ("10.7.0.1", 8080))
    (answer,) = asked(client)
    assert (answer.address, answer.port) == (socket.inet_aton("10.6.0.2"), 80)
    server = end(inode(connected, "server"), ("10.6.0.2", 80), ("10.6.0.1", 5000), "server")
    (answer,) = asked(server)
    assert (answer.address, answer.port) == (socket.inet_aton("10.7.0.2"), 5000)


def test_the_same_addresses_in_namespaces_that_are_not_on_the_way_have_no_part_in_it(connected: Network) -> None:
    connected.add("client2", "router2")
    connected.join("client2", "10.7.0.2/24", "router2", "10.7.0.1/24")
    (answer,) = asked(end(inode(connected, "client2"), ("10.7.0.2", 5000), ("10.7.0.1", 8080)))
    assert answer.address == b""


def test_what_is_not_translated_has_no_other_address(connected: Network) -> None:
    (answer,) = asked(end(inode(connected, "client"), ("10.7.0.2", 5001), ("10.7.0.1", 8080)))
    assert answer.address == b""


def test_a_namespace_that_is_gone_is_no_error() -> None:
    (answer,) = asked(end(1, ("10.7.0.2", 5000), ("10.7.0.1", 8080)))
    assert answer == (7, b"", 0)


def test_cables_join_namespaces(network: Network) -> None:
    client, router, server = (inode(network, name) for name in ("client", "router", "server"))
    everybody = network_namespaces()
    assert neighbours(network.path("client"), everybody) == {router}
    assert neighbours(network.path("router"), everybody) == {client, server}


def test_asking_keeps_nothing_open_that_would_keep_a_namespace_alive(connected: Network) -> None:
    question = end(inode(connected, "client"), ("10.7.0.2", 5000), ("10.7.0.1", 8080))
    before = psutil.Process().num_fds()
    assert asked(question)[0].address
    assert psutil.Process().num_fds() == before
