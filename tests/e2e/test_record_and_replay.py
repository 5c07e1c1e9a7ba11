# SPDX-License-Identifier: Apache-2.0
"""A recording of real traffic, replayed: the bytes the agent wrote; and redacted: the same without secrets."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.agent import ROVER_HOST, Agent
from tests.support.servers import Nginx, let_others_read
from tests.support.traffic import LOCATIONS, SECRETS, Nghttpd, run_http1, run_http2

if TYPE_CHECKING:
    from pathlib import Path

# The kernel side follows the framing of large content and does not copy it, with or without redaction.
NOT_COPIED = {"chunk"}


@dataclass(frozen=True)
class Recorded:
    """What one recording agent left."""

    file: Path
    live: bytes
    ports: dict[int, int]  # exchanges by their server's port
    said: list[str]


def _record(folder: Path, *options: str) -> Recorded:
    for path in (folder, folder.parent, folder.parent.parent):
        let_others_read(path)  # for nginx's workers
    served = folder / "served"
    served.mkdir()
    file = folder / "traffic.rec"
    live = folder / "access.jsonl"
    command = ("record", str(file), "--output", "jsonl", "--path", str(live), *options)
    with Nginx(folder / "nginx", locations=LOCATIONS) as nginx, Nghttpd(served) as nghttpd:
        # Of all that goes on here only this test's: the servers by their ports, the clients by whom they ask.
        both = (nginx.port, nghttpd.port)
        rules = [f"port={port}" for port in both] + [f"cmdline~=:{port}/" for port in both]
        only = f"process_discovery.local.include={','.join(rules)}"
        with Agent(folder, "jsonl", only, command=command) as agent:
            ports = {nginx.port: run_http1(nginx, folder), nghttpd.port: run_http2(nghttpd, served)}
            for port, count in ports.items():
                agent.wait_for_exchanges(lambda item, port=port: item["local"]["port"] == port, count)
            assert agent.stop() == 0, agent.text
    return Recorded(file, live.read_bytes(), ports, agent.text)


def _ports(item: dict[str, Any]) -> set[int]:
    return {item["local"]["port"], item["remote"]["port"]}


def _replay(file: Path, before: tuple[str, ...] = ()) -> bytes:
    command = [*before, ROVER_HOST, "replay", str(file), "--output", "jsonl"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"imbalance 0" in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return _record(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def redacted(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return _record(tmp_path_factory.mktemp("redacted"), "--redact")


def test_what_is_compared_are_all_exchanges_of_the_servers(recorded: Recorded) -> None:
    # And of the clients that had a name in time, which on a busy machine need not be all.
    exchanges = [item for item in map(json.loads, recorded.live.splitlines()) if item["kind"] == "exchange"]
    for port, count in recorded.ports.items():
        servers = [item for item in exchanges if item["local"]["port"] == port]
        assert len(servers) == count
        # All but an upload of which no call is copied whole.
        assert [item["completeness"] for item in servers].count("complete") >= count - 1


def test_a_replay_writes_the_bytes_that_the_agent_wrote_each_time(recorded: Recorded) -> None:
    assert _replay(recorded.file) == recorded.live
    assert _replay(recorded.file) == recorded.live


def test_a_replay_needs_no_privileges(recorded: Recorded) -> None:
    # Root without a capability may do what any user may, and reads this checkout wherever it lies.
    assert _replay(recorded.file, before=("setpriv", "--bounding-set=-all", "--inh-caps=-all")) == recorded.live


def test_a_recording_is_its_owners_only(redacted: Recorded) -> None:
    assert redacted.file.stat().st_mode & 0o777 == 0o600


def test_the_recorder_says_what_it_wrote(recorded: Recorded) -> None:
    assert any(f"{recorded.file}: " in line and " records, " in line for line in recorded.said)


def test_no_secret_is_in_a_redacted_recording(recorded: Recorded, redacted: Recorded) -> None:
    plain, hidden = recorded.file.read_bytes(), redacted.file.read_bytes()
    for where, secret in SECRETS.items():
        assert secret.encode() in plain or where in NOT_COPIED, f"{where} was not even recorded"
        assert secret.encode() not in hidden, where
    # nghttpd's and h2load's own compression hides words from a search of the bytes; what is decoded is in the replay.
    replayed = _replay(redacted.file)
    assert b"secret" not in replayed


def test_a_redacted_recording_gives_the_same_exchanges_but_for_their_words(redacted: Recorded) -> None:
    hidden = ("path", "host", "trace", "grpc_message")
    live = [json.loads(line) for line in redacted.live.splitlines()]
    replayed = [json.loads(line) for line in _replay(redacted.file).splitlines()]
    ours = set(redacted.ports)

    def known(item: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in item.items() if key not in hidden}

    assert [known(item) for item in replayed if _ports(item) & ours] == [
        known(item) for item in live if _ports(item) & ours
    ]
    for before, after in zip(live, replayed, strict=True):
        if before["kind"] == "exchange" and _ports(before) & ours:
            assert len(after["path"]) == len(before["path"])
            assert after["path"].count("/") == before["path"].count("/")


def test_an_existing_file_is_not_overwritten(recorded: Recorded) -> None:
    before = recorded.file.read_bytes()
    done = subprocess.run(
        [ROVER_HOST, "record", str(recorded.file), "--set", f"process_discovery.feed.socket={recorded.file}.sock"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("rover-host: ")
    assert f"{recorded.file} exists" in last
    assert b"Traceback" not in done.stderr
    assert recorded.file.read_bytes() == before
