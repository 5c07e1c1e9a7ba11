# SPDX-License-Identifier: Apache-2.0
"""Who is at the ends of a connection: local processes by their own ends, everybody else by address."""

from __future__ import annotations

import ipaddress

import pytest

from rover_plugin.access_log.address_book import AddressBook, interface_addresses
from rover_plugin.access_log.link import ConnectionFacts
from rover_plugin.discovery.model import Entity, Process, ProcessKey

SECOND = 1_000_000_000
HOST = ipaddress.ip_address("192.0.2.7").packed
LOOPBACK = ipaddress.ip_address("127.0.0.1").packed
ELSEWHERE = ipaddress.ip_address("198.51.100.9").packed


def book(*processes: Process, **exclusions: tuple[str, ...]) -> AddressBook:
    made = AddressBook(
        exclusions.get("namespaces", ()), exclusions.get("clusters", ()), local_addresses=lambda: frozenset((HOST,))
    )
    for process in processes:
        made.add_process(process)
    return made


def process(pid: int, service: str = "", **more: str) -> Process:
    entity = Entity("K8S_SERVICE", service, f"pod-{pid}", f"process-{pid}", **more)
    return Process(ProcessKey(pid, 1000 + pid), entities=(entity,) if service else ())


def facts(
    pid: int,
    local: tuple[bytes, int],
    remote: tuple[bytes, int],
    *,
    identity: int = 1,
    netns: int = 1,
    role: str = "client",
) -> ConnectionFacts:
    return ConnectionFacts(
        identity,
        pid,
        netns,
        role,
        tls=False,
        ipv6=len(local[0]) == 16,
        local_port=local[1],
        remote_port=remote[1],
        local=local[0],
        remote=remote[0],
    )


@pytest.mark.parametrize("address", [LOOPBACK, ipaddress.ip_address("::1").packed, HOST])
def test_both_ends_of_a_local_connection_are_named(address: bytes) -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    client = facts(1, (address, 4000), (address, 80))
    server = facts(2, (address, 80), (address, 4000), identity=2, role="server")
    names.learn(client)
    assert names.peer_is_ours(client)
    assert not names.peer_is_known(client)
    names.learn(server)
    assert names.peer_is_known(client)
    resolved = names.resolve(client)
    assert resolved.local.entity is not None
    assert resolved.remote.entity is not None
    assert (resolved.local.entity.service, resolved.remote.entity.service) == ("client.a", "server.b")
    assert (resolved.local.pid, resolved.remote.pid) == (1, 2)


def test_a_peer_on_another_host_is_its_address() -> None:
    names = book(process(1, "client.a"))
    client = facts(1, (HOST, 4000), (ELSEWHERE, 80))
    names.learn(client)
    assert not names.peer_is_ours(client)
    remote = names.resolve(client).remote
    assert (remote.host, remote.port, remote.entity, remote.pid) == ("198.51.100.9", 80, None, None)


def test_the_same_loopback_end_in_another_network_namespace_is_another_end() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    names.learn(facts(2, (LOOPBACK, 80), (LOOPBACK, 4000), identity=2, netns=2, role="server"))
    assert not names.peer_is_known(facts(1, (LOOPBACK, 4000), (LOOPBACK, 80), netns=1))


def test_the_end_of_a_closed_connection_is_remembered_for_its_peer() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    server = facts(2, (LOOPBACK, 80), (LOOPBACK, 4000), identity=2, role="server")
    names.learn(server)
    names.forget(server, 0)
    assert names.peer_is_known(facts(1, (LOOPBACK, 4000), (LOOPBACK, 80)))


def test_closed_connections_do_not_pile_up() -> None:
    names = book(process(1, "client.a"))
    for number in range(1000):
        one = facts(1, (HOST, 1000 + number), (ELSEWHERE, 80))
        names.learn(one)
        names.forget(one, number * SECOND)
    assert all(size < 10 for size in names.sizes().values())


def test_a_listening_end_lives_as_long_as_one_of_its_connections() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    first = facts(2, (LOOPBACK, 80), (LOOPBACK, 4000), identity=2, role="server")
    second = facts(2, (LOOPBACK, 80), (LOOPBACK, 4001), identity=3, role="server")
    names.learn(first)
    names.learn(second)
    names.forget(first, 0)
    names.forget(second, 60 * SECOND)  # what is due goes; this one is due later
    assert names.peer_is_known(facts(1, (LOOPBACK, 4001), (LOOPBACK, 80)))


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (process(1), "not_selected"),
        (process(1, "cart.shop", namespace="kube-system"), "excluded_namespace"),
        (process(1, "cart.shop", namespace="kube-system-2"), ""),
        (process(1, "blue::cart.shop"), "excluded_cluster"),
        (process(1, "cart.shop", cluster="blue"), "excluded_cluster"),
        (process(1, "green::cart.shop", cluster="blue"), ""),
        (process(1, "cart.shop"), ""),
    ],
)
def test_exclusions_are_exact_names(named: Process, reason: str) -> None:
    assert book(named, namespaces=("kube-system",), clusters=("blue",)).exclusion_of(1) == reason


def test_a_late_removal_does_not_take_the_process_that_has_the_pid_now() -> None:
    names = book(process(1, "old"))
    old = ProcessKey(1, 1001)
    names.add_process(Process(ProcessKey(1, 5000), entities=(Entity("OS_LINUX", "new", "", ""),)))
    names.remove_process(old)
    assert names.knows(1)
    names.remove_process(ProcessKey(1, 5000))
    assert not names.knows(1)


def test_this_hosts_addresses_are_found() -> None:
    assert LOOPBACK in interface_addresses()


def test_an_exclusion_follows_what_the_feed_says_last() -> None:
    made = book(process(1, "cart.shop", namespace="kube-system"), namespaces=("kube-system",))
    made.add_process(process(1, "cart.shop"))
    assert not made.exclusion_of(1)
    made.add_process(process(1))
    assert made.exclusion_of(1) == "not_selected"
