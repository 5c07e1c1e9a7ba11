# SPDX-License-Identifier: Apache-2.0
"""What memory has no room for, or was not sent when the agent stopped, waits in files, and is sent once."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log.outputs import disk_spool, skywalking
from rover_plugin.access_log.outputs.disk_spool import DiskSpool
from rover_plugin.access_log.outputs.parcel import Parcel, logs_in
from rover_plugin.backend.backoff import Backoff
from rover_plugin.errors import RoverError
from rover_plugin.telemetry.ledger import Logs
from tests.support.oap import OapDouble
from tests.unit.output_skywalking.test_delivery import Subject, closed_port, output_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries within a tenth of a second."""
    monkeypatch.setattr(skywalking, "Backoff", lambda: Backoff(0.05, 0.1))


def parcel(number: int, size: int = 1000, boot_seconds: int = 0) -> Parcel:
    return Parcel(bytearray(number.to_bytes(4, "big") * (size // 4)), 3, 2 * number, number, boot_seconds)


class Owner:
    """What a spool's owner keeps of it."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.losses: list[tuple[Logs, str]] = []
        self.taken: list[Parcel] = []

    @contextmanager
    def spool(self, directory: Path, most_bytes: int = 1 << 30) -> Iterator[DiskSpool]:
        spool = DiskSpool(directory, most_bytes, self.lock, lambda logs, why: self.losses.append((logs, why)))
        try:
            yield spool
        finally:
            spool.close()

    def load_all(self, spool: DiskSpool) -> list[Parcel]:
        while spool.filled:
            spool.load(self.taken.extend)
        return self.taken


def test_parcels_come_back_in_order_with_their_counts_in_a_later_run(tmp_path: Path) -> None:
    owner = Owner()
    parcels = [parcel(number, 300_000) for number in range(1, 9)]
    with owner.spool(tmp_path / "new" / "spool") as spool:
        spool.keep(parcels[:5])
        assert spool.offer(parcels[5:])
        assert spool.logs == logs_in(parcels)
    assert (tmp_path / "new" / "spool").stat().st_mode & 0o777 == 0o700
    with owner.spool(tmp_path / "new" / "spool") as spool:
        assert spool.logs == logs_in(parcels)
        assert owner.load_all(spool) == parcels
        assert spool.logs == Logs(0, 0)
    assert owner.losses == []
    assert [path.name for path in (tmp_path / "new" / "spool").iterdir()] == ["lock"]


def test_the_oldest_file_gives_way_when_the_room_is_used_up(tmp_path: Path) -> None:
    owner = Owner()
    parcels = [parcel(number, disk_spool.FILE_BYTES) for number in range(1, 6)]
    with owner.spool(tmp_path, 2 * disk_spool.FILE_BYTES + 1000) as spool:
        spool.keep(parcels)
        assert owner.losses == [(logs_in([one]), "spool_full") for one in parcels[:3]]
        assert owner.load_all(spool) == parcels[3:]


def test_parcels_of_an_earlier_boot_keep_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    with owner.spool(tmp_path) as spool:
        spool.keep([parcel(1), parcel(2, boot_seconds=1_000_000)])
    boot = tmp_path / "boot_id"
    boot.write_text("00112233-4455-6677-8899-aabbccddeeff\n")
    monkeypatch.setattr(disk_spool, "_BOOT_ID", boot)
    with owner.spool(tmp_path) as spool:
        first, second = owner.load_all(spool)
    assert abs(first.boot_seconds - (time.time() - time.monotonic())) < 2
    assert second.boot_seconds == 1_000_000


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [_cut, _flip, _empty])
def test_a_damaged_file_gives_what_is_whole_and_counts_the_rest(damage: Callable[[Path], None], tmp_path: Path) -> None:
    owner = Owner()
    with owner.spool(tmp_path) as spool:
        spool.keep([parcel(1), parcel(2)])
        damage(next(tmp_path.glob("*.parcels")))
        taken = owner.load_all(spool)
        assert taken == ([] if damage is _empty else [parcel(1)])
        lost = logs_in([parcel(1), parcel(2)] if damage is _empty else [parcel(2)])
        assert owner.losses == [(lost, "spool_damaged")]
        assert spool.logs == Logs(0, 0)


def test_a_disk_without_room_loses_and_counts_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with owner.spool(tmp_path) as spool:
        monkeypatch.setattr(disk_spool, "_write_whole", full)
        spool.keep([parcel(1)])
        assert owner.losses == [(Logs(2, 1), "spool_not_written")]
        assert not list(tmp_path.glob("*.parcels")) + list(tmp_path.glob("*.new"))


def test_a_directory_that_others_can_write_to_or_that_is_in_use_is_refused(tmp_path: Path) -> None:
    owner = Owner()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for directory in (shared, tmp_path / "link"):
        with pytest.raises(RoverError, match="alone"), owner.spool(directory):
            pass
    with owner.spool(tmp_path / "one"), pytest.raises(RoverError, match="another agent"), owner.spool(tmp_path / "one"):
        pass


def test_foreign_files_in_the_directory_are_not_read_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "x.parcels").write_text("no number")
    (tmp_path / "00000000000000000007.parcels").symlink_to("/etc/passwd")
    owner = Owner()
    with owner.spool(tmp_path) as spool:
        assert owner.load_all(spool) == []
    assert (tmp_path / "x.parcels").exists()


def assert_kept(subject: Subject, kept: int) -> None:
    stands = subject.output.standing()
    for unit, name in enumerate(("kernel", "protocol")):
        lost = sum(logs[unit] for logs in stands.lost.values())
        known = stands.exported[unit] + lost + stands.held[unit] + stands.kept[unit]
        assert subject.given[name] + stands.restored[unit] == known
    assert stands.kept.protocol == kept


@contextmanager
def spooling(address: str, directory: Path, **values: object) -> Iterator[Subject]:
    with output_to(address, access_log__spool__directory=directory, **values) as subject:
        subject.assert_balanced = lambda: None  # type: ignore[method-assign]  what is kept is not in the counters
        yield subject


def test_an_agent_that_stops_without_backend_hands_its_logs_to_the_next_one(tmp_path: Path) -> None:
    port = closed_port()
    with spooling(f"127.0.0.1:{port}", tmp_path) as subject:
        subject.give(500)
        subject.output.close(5)
        assert subject.lost() == 0
        assert_kept(subject, 500)
    with OapDouble(port=port) as oap, spooling(f"127.0.0.1:{port}", tmp_path) as subject:
        subject.give(10, flush=True)
        subject.wait_until(lambda: subject.exported() == 510)
        assert oap.tally.protocol == 510
        assert oap.clean, oap.report()
        assert_kept(subject, 0)


def test_an_outage_longer_than_memory_loses_nothing_that_the_disk_has_room_for(tmp_path: Path) -> None:
    port = closed_port()
    with spooling(f"127.0.0.1:{port}", tmp_path, access_log__spool__max_bytes="256KB") as subject:
        for _ in range(20):
            subject.give(250, flush=True)
            subject.wait_until(subject.output._disk._waiting.empty)
        with OapDouble(port=port, keep="checks") as oap:
            subject.wait_until(lambda: subject.exported() == 5000)
            assert oap.tally.protocol == 5000
        assert subject.lost() == 0
        assert_kept(subject, 0)
