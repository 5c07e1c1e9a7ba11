# SPDX-License-Identifier: Apache-2.0
"""Each line names who really was at the other end, wherever on this host the ends are, whatever lies between."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.agent import ROVER_HOST, Agent
from tests.support.network import Network, missing_tools, said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "-")

ONLY_TALKERS = r"process_discovery.local.include=cmdline~=support/talk\.py"
ROOM = "access_log.protocol_analyze.per_cpu_buffer=4MB"
ROUTER = """
table ip nat {
  chain pre {
    type nat hook prerouting priority -100;
    ip daddr 192.168.77.1 tcp dport 8080 dnat to 172.30.0.2:8083
  }
  chain out {
    type nat hook output priority -100;
    ip daddr 192.168.77.1 tcp dport 8080 dnat to 172.30.0.2:8083
  }
  chain post {
    type nat hook postrouting priority 100;
    ip saddr 172.30.0.0/24 ip daddr 172.30.0.2 masquerade
    oifname "to-x" masquerade
  }
}
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with Agent(tmp_path_factory.mktemp("agent"), "jsonl", ONLY_TALKERS, ROOM) as running:
        yield running


@pytest.fixture
def network() -> Iterator[Network]:
    with Network("pn") as made:
        yield made


def lines(agent: Agent, truth: dict[str, int], least: int = 0) -> list[dict[str, Any]]:
    """The lines of both ends of every exchange, or `least` of them."""
    return agent.wait_for_exchanges(lambda item: item["path"] in truth, least or 2 * len(truth), 30)


def check(agent: Agent, truth: dict[str, int], least: int = 0) -> None:
    """No wrong name, and no name missing: `truth` is the server's pid by path, a path names its client."""
    wrong, unnamed = [], []
    for item in lines(agent, truth, least):
        client, server = int(item["path"].split("/")[1]), truth[item["path"]]
        local, remote = (client, server) if item["role"] == "client" else (server, client)
        if item["local"]["pid"] != local or item["remote"].get("pid", remote) != remote:
            wrong.append(item)
        elif "service" not in item["remote"]:
            unnamed.append(item)
    assert (len(wrong), len(unnamed)) == (0, 0), (wrong[:2], unnamed[:2])


def test_two_pools_over_shared_ephemeral_ports(agent: Agent, network: Network) -> None:
    network.add("p")
    network.set("p", "net.ipv4.ip_local_port_range=40000 40699")
    with network.serving("p", "127.0.0.1", 9001) as first, network.serving("p", "127.0.0.1", 9002) as second:
        clients = [network.start("p", "call", "127.0.0.1", port, 500, 2) for port in (9001, 9002)]
        heard = [said(client) for client in clients]
        assert [set(each.values()) for each in heard] == [{first.pid}, {second.pid}]
        truth = heard[0] | heard[1]
        check(agent, truth)
        ports = [{item["local"]["port"] for item in lines(agent, each) if item["role"] == "client"} for each in heard]
        assert ports[0] & ports[1], "no port was shared: the test shows nothing"


def test_two_services_behind_one_port_and_their_prefork_workers(agent: Agent, network: Network) -> None:
    network.add("r")
    with network.serving("r", "127.0.0.1", 9001, 4), network.serving("r", "127.0.0.1", 9001):
        truth = network.call("r", "127.0.0.1", 9001, 100, 2)
        assert len(set(truth.values())) > 1
        check(agent, truth)


def test_two_namespaces_with_the_same_addresses(agent: Agent, network: Network) -> None:
    network.add("a1", "a2", "b1", "b2")
    for pair in "ab":
        network.join(f"{pair}1", "10.9.0.1/24", f"{pair}2", "10.9.0.2/24")
    with network.serving("a1", "10.9.0.1", 9001) as first, network.serving("b1", "10.9.0.1", 9001) as second:
        clients = [network.start(name, "call", "10.9.0.1", 9001, 30, 2) for name in ("a2", "b2")]
        heard = [said(client) for client in clients]
        assert [set(each.values()) for each in heard] == [{first.pid}, {second.pid}]
        check(agent, heard[0] | heard[1])


def test_short_connections_between_namespaces_from_processes_that_live_but_a_moment(
    agent: Agent, network: Network
) -> None:
    network.add("1", "2")
    network.join("1", "fd00::1/64", "2", "fd00::2/64")
    with network.serving("1", "fd00::1", 9001):
        truth = {}
        for _ in range(10):
            truth |= network.call("2", "fd00::1", 9001, 1, 1)
        check(agent, truth)


@pytest.fixture
def routed(network: Network) -> Network:
    """x and c, each with a cable to the router h that translates."""
    network.add("x", "h", "c")
    network.join("x", "192.168.77.2/24", "h", "192.168.77.1/24")
    network.join("c", "172.30.0.2/24", "h", "172.30.0.1/24")
    network.route("x", "192.168.77.1")
    network.route("c", "172.30.0.1")
    network.set("h", "net.ipv4.ip_forward=1")
    network.rules("h", ROUTER)
    return network


@pytest.mark.parametrize(
    ("caller", "server", "dialled", "reached"),
    [
        pytest.param("x", ("c", "172.30.0.2", 8083), ("192.168.77.1", 8080), ("172.30.0.2", 8083), id="published port"),
        pytest.param("h", ("c", "172.30.0.2", 8083), ("192.168.77.1", 8080), ("172.30.0.2", 8083), id="from the host"),
        pytest.param("c", ("c", "172.30.0.2", 8083), ("192.168.77.1", 8080), ("172.30.0.2", 8083), id="hairpin"),
        pytest.param("c", ("x", "192.168.77.2", 8084), ("192.168.77.2", 8084), None, id="masquerade"),
    ],
)
def test_translated_connections(
    agent: Agent,
    routed: Network,
    caller: str,
    server: tuple[str, str, int],
    dialled: tuple[str, int],
    reached: tuple[str, int] | None,
) -> None:
    with routed.serving(*server):
        truth = routed.call(caller, *dialled, 20, 2)
        check(agent, truth)
        ends = {(item["local"]["address"], item["local"]["port"]) for item in lines(agent, truth)}
        for item in lines(agent, truth):
            # Both ends show each other's own address.
            assert (item["remote"]["address"], item["remote"]["port"]) in ends
            if item["role"] == "client" and reached is not None:
                assert item["remote"]["dialled"] == {"address": dialled[0], "port": dialled[1]}
            elif item["role"] == "client":
                assert "dialled" not in item["remote"]
            if item["role"] == "server" and caller == "c":
                assert item["remote"]["seen"]["address"] in {"172.30.0.1", "192.168.77.1"}


def test_a_translated_connection_to_somebody_who_is_not_watched_shows_who_that_is(
    agent: Agent, routed: Network
) -> None:
    with routed.serving("c", "172.30.0.2", 8083, name="elsewhere.py"):
        truth = routed.call("x", "192.168.77.1", 8080, 5, 2)
        for item in lines(agent, truth, len(truth)):
            remote = item["remote"]
            assert (remote["address"], remote["port"]) == ("172.30.0.2", 8083)
            assert remote["dialled"] == {"address": "192.168.77.1", "port": 8080}
            assert "service" not in remote


def test_a_masqueraded_connection_from_somebody_who_is_not_watched_shows_who_that_is(
    agent: Agent, routed: Network
) -> None:
    with routed.serving("c", "172.30.0.2", 8083):
        truth = said(routed.start("c", "call", "192.168.77.1", 8080, 5, 2, name="elsewhere.py"))
        for item in lines(agent, truth, len(truth)):
            remote = item["remote"]
            assert (remote["address"], remote["seen"]["address"]) == ("172.30.0.2", "172.30.0.1")
            assert "service" not in remote


def test_a_server_killed_and_started_again_at_the_same_address(agent: Agent) -> None:
    truth: dict[str, int] = {}
    for _ in range(3):
        with Network("pk") as again:
            again.add("s", "k")
            again.join("s", "10.8.0.1/24", "k", "10.8.0.2/24")
            again.set("k", "net.ipv4.ip_local_port_range=40000 40019")
            server = again.start("s", "serve", "10.8.0.1", 9001)
            truth |= again.call("k", "10.8.0.1", 9001, 10, 2)
            os.kill(server.pid, signal.SIGKILL)
    check(agent, truth)


def test_a_recording_of_translated_connections_gives_the_same_bytes(tmp_path: Path, routed: Network) -> None:
    recording, live = tmp_path / "a.rec", tmp_path / "access.jsonl"
    command = ("record", str(recording), "--output", "jsonl", "--path", str(live))
    with Agent(tmp_path, "jsonl", ONLY_TALKERS, command=command) as agent:
        with routed.serving("c", "172.30.0.2", 8083, name="elsewhere.py"):
            truth = routed.call("x", "192.168.77.1", 8080, 5, 2)
        with routed.serving("c", "172.30.0.2", 8083):
            truth |= routed.call("c", "192.168.77.1", 8080, 5, 2)
        found = lines(agent, truth, 30)
        assert all("dialled" in item["remote"] for item in found if item["role"] == "client")
        assert agent.stop() == 0
    replayed = subprocess.run(
        [ROVER_HOST, "replay", str(recording), "--output", "jsonl"], capture_output=True, check=True
    )
    assert replayed.stdout == live.read_bytes()


def test_connections_older_than_the_agent(tmp_path: Path, routed: Network) -> None:
    with routed.serving("c", "172.30.0.2", 8083):
        clients = [routed.start(name, "call", "192.168.77.1", 8080, 20, 2) for name in ("x", "c")]
        with Agent(tmp_path, "jsonl", ONLY_TALKERS, ROOM) as late:
            truth = said(clients[0]) | said(clients[1])
            # The servers waited in a read that began before the agent: it is not theirs, and the request in it neither.
            check(late, truth, len(truth) * 3 // 2)
