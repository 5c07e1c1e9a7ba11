# SPDX-License-Identifier: Apache-2.0
"""The wheel brings along what a checkout has beside the package: BPF sources, protos and the annotated defaults."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOK = """
from rover_plugin.data import data_path
from rover_plugin.settings import load
from rover_plugin.capture.source import read_source
print(data_path("bpf"), len(read_source(data_path("bpf"), "access_log.c")), load([]).text("access_log.flush.period"))
"""


def test_an_installed_package_finds_its_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = set(archive.namelist())
    for kind in ("bpf/*", "protos/**/*.proto", "config/default.toml"):
        for source in filter(Path.is_file, ROOT.glob(kind)):
            assert f"rover_plugin/_data/{source.relative_to(ROOT)}" in names
    found = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert found[0] == str(installed / "rover_plugin/_data/bpf")
    assert int(found[1]) > 10_000
    assert found[2] == "5s"
