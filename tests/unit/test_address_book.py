# SPDX-License-Identifier: Apache-2.0
"""Who is at the ends of a connection: local processes by their own ends, everybody else by address."""

from __future__ import annotations

import ipaddress

import pytest

from rover_plugin.access_log.address_book import AddressBook, interface_addresses
from rover_plugin.access_log.link import ConnectionFacts
from rover_plugin.access_log.model import Beginnings
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
    began: tuple[int, int] | None = None,
    beginnings: Beginnings = Beginnings.EXACT,
) -> ConnectionFacts:
    """Of an end whose streams, the one written and the one read, began at `began`; None where that is not known."""
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
        beginnings=beginnings if began is not None else Beginnings.UNKNOWN,
        first_written=began[0] if began is not None else 0,
        first_read=began[1] if began is not None else 0,
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


@pytest.mark.parametrize("address", [LOOPBACK, HOST])
def test_the_same_addresses_in_another_network_namespace_prove_nothing(address: bytes) -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    names.learn(facts(2, (address, 80), (address, 4000), identity=2, netns=2, role="server"))
    assert not names.peer_is_known(facts(1, (address, 4000), (address, 80), netns=1))


def test_streams_that_began_together_are_one_connection_whatever_lies_between() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    client = facts(1, (LOOPBACK, 4000), (HOST, 8080), netns=1, began=(7, 9))
    server = facts(2, (ELSEWHERE, 80), (HOST, 51000), identity=2, netns=2, role="server", began=(9, 7))
    names.learn(client)
    names.learn(server)
    remote = names.resolve(client).remote
    assert (remote.pid, remote.host, remote.port, remote.seen) == (2, "198.51.100.9", 80, ("192.0.2.7", 8080))
    remote = names.resolve(server).remote
    assert (remote.pid, remote.host, remote.port, remote.seen) == (1, "127.0.0.1", 4000, ("192.0.2.7", 51000))


def test_the_same_addresses_with_other_streams_are_another_connection() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    before = facts(2, (HOST, 80), (HOST, 4000), identity=2, role="server", began=(9, 7))
    names.learn(before)
    names.forget(before, 0)
    again = facts(1, (HOST, 4000), (HOST, 80), began=(7, 10))
    names.learn(again)
    assert names.resolve(again).remote.pid is None


@pytest.mark.parametrize(
    ("remote", "server", "known"),
    [
        (HOST, "server.b", "named"),
        (HOST, "", "not_chosen"),
        (HOST, None, "unnamed"),
        (LOOPBACK, None, "unnamed"),
        (ELSEWHERE, None, "elsewhere"),
    ],
)
def test_what_is_known_of_other_ends_is_told_apart(remote: bytes, server: str | None, known: str) -> None:
    names = book(process(1, "client.a"))
    if server is not None:
        names.add_process(process(2, server))
        names.learn(facts(2, (remote, 80), (HOST, 4000), identity=2, role="server", began=(9, 7)))
    client = facts(1, (HOST if remote != LOOPBACK else LOOPBACK, 4000), (remote, 80), began=(7, 9))
    assert names.knowledge_of_peer(client) == known


def test_a_connect_that_failed_has_no_other_end() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    failed = facts(1, (HOST, 4000), (HOST, 80), began=(0, 0), beginnings=Beginnings.NEVER)
    names.learn(facts(2, (HOST, 80), (HOST, 4000), identity=2, began=(0, 0), beginnings=Beginnings.NEVER))
    names.learn(failed)
    assert names.resolve(failed).remote.pid is None


@pytest.mark.parametrize("position", [0, 5, 0xFFFFFFFF])
@pytest.mark.parametrize("server", [Beginnings.EXACT, Beginnings.LOOSE])
def test_the_syn_of_a_client_older_than_the_agent_is_allowed_for(position: int, server: Beginnings) -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    began = ((position - 1) & 0xFFFFFFFF, 9)
    one = facts(1, (HOST, 4000), (HOST, 80), began=began, beginnings=Beginnings.LOOSE)
    other = facts(2, (HOST, 80), (HOST, 4000), identity=2, role="server", began=(9, position), beginnings=server)
    names.learn(one)
    names.learn(other)
    assert (names.resolve(one).remote.pid, names.resolve(other).remote.pid) == (2, 1)


def test_a_socket_connected_to_itself_is_its_own_other_end() -> None:
    names = book(process(1, "narcissus"))
    one = facts(1, (HOST, 4000), (HOST, 4000), began=(7, 7))
    names.learn(one)
    assert names.resolve(one).remote.pid == 1


@pytest.mark.parametrize("pids", [(10, 10), (10, 11)])
def test_candidates_that_are_not_the_same_process_s_name_nobody(pids: tuple[int, int]) -> None:
    names = book(*(process(pid, "server.b") for pid in set(pids)))
    for number, pid in enumerate(pids):
        names.learn(facts(pid, (HOST, 80), (HOST, 4000), identity=number + 2, role="server", began=(9, 7)))
    assert names.resolve(facts(1, (HOST, 4000), (HOST, 80), began=(7, 9))).remote.pid == (
        10 if pids == (10, 10) else None
    )


@pytest.mark.parametrize("known", [True, False])
def test_each_client_of_a_shared_listener_has_the_worker_that_accepted_it(*, known: bool) -> None:
    names = book(process(1, "client.a"), process(11, "blue"), process(12, "green"))
    for number, worker in enumerate((11, 12)):
        began = (number, 9) if known else None
        client = facts(1, (LOOPBACK, 4001 + number), (LOOPBACK, 80), identity=2 * number, began=began)
        mirrored = (began[1], began[0]) if began is not None else None
        accepted = facts(
            worker, (LOOPBACK, 80), (LOOPBACK, 4001 + number), identity=2 * number + 1, role="server", began=mirrored
        )
        names.learn(client)
        names.learn(accepted)
        assert names.resolve(client).remote.pid == worker
        assert names.resolve(accepted).remote.pid == 1


def test_the_name_of_a_process_that_is_gone_stays_with_its_connection() -> None:
    names = book(process(1, "client.a"), process(2, "server.b"))
    client = facts(1, (HOST, 4000), (HOST, 80), began=(7, 9))
    names.learn(client)
    names.learn(facts(2, (HOST, 80), (HOST, 4000), identity=2, role="server", began=(9, 7)))
    names.remove_process(ProcessKey(2, 1002))
    names.add_process(Process(ProcessKey(2, 5000), entities=(Entity("OS_LINUX", "another", "", ""),)))
    remote = names.resolve(client).remote
    assert remote.entity is not None
    assert remote.entity.service == "server.b"


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
