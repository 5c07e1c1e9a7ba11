# SPDX-License-Identifier: Apache-2.0
"""Real container runtimes, with all they keep in a folder of their own, and an image of busybox alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest

from tests.support.servers import tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# runc or crun as they are, but for limits in the bundle: raising one needs a capability that not every root has.
_UNLIMITED = """\
import json, os, sys
arguments = sys.argv[1:]
def without_limits(path, process):
    with open(path) as file:
        config = json.load(file)
    (config["process"] if process else config).pop("rlimits", None)
    with open(path, "w") as file:
        json.dump(config, file)
if "create" in arguments:
    without_limits(os.path.join(arguments[arguments.index("--bundle") + 1], "config.json"), True)
if "exec" in arguments and "--process" in arguments:
    without_limits(arguments[arguments.index("--process") + 1], False)
os.execv(RUNTIME, [RUNTIME, *arguments])
"""
_CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/containerd.sock"
"""


def busybox_layer() -> bytes:
    """A tar of a file system with busybox and its commands."""
    busybox = Path(tool("busybox"))
    if subprocess.run(["ldd", busybox], capture_output=True, check=False).returncode == 0:
        pytest.skip("busybox-static is not installed")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for directory in ("bin", "etc", "tmp", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        _add(archive, "bin/busybox", busybox.read_bytes(), 0o755)
        _add(archive, "etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        for name in ("sh", "sleep", "wget", "true"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    return layer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def oci_archive(path: Path, layer: bytes, name: str) -> None:
    """Writes an image of one layer (the OCI image specification, image layout)."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    described = blob("layer.v1.tar", layer)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [described["digest"]]}}
    manifest = {
        "schemaVersion": 2,
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [described],
    }
    entry = blob("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"io.containerd.image.name": name}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for digest, content in blobs.items():
            _add(archive, f"blobs/sha256/{digest}", content)


class Containerd:
    """containerd with containers of `ctr`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = [tool("containerd"), tool("ctr"), tool("runc")]
        self._running: list[str] = []

    def __enter__(self) -> Self:
        self._folder.mkdir()
        config = self._folder / "config.toml"
        config.write_text(_CONTAINERD.format(folder=self._folder))
        with (self._folder / "log").open("w") as log:
            command = [self._programs[0], "--config", str(config)]
            self._daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        image = self._folder / "image.tar"
        oci_archive(image, busybox_layer(), "local/busybox:1")
        deadline = time.monotonic() + 30
        while self._ctr("version", check=False).returncode:
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)
        self._ctr("image", "import", str(image))
        tried = self._run("rover-try", "/bin/true", "--rm", check=False)
        if tried.returncode:
            self.__exit__()
            pytest.skip(f"containerd runs no container here: {tried.stderr.strip()[-300:]}")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._running:
            self._ctr("task", "kill", "--signal", "9", name, check=False)
            self._ctr("task", "delete", "--force", name, check=False)
        self._daemon.terminate()
        self._daemon.wait(30)

    def run(self, name: str, *command: str) -> None:
        """Runs a program in a container of its own, to its end."""
        self._run(name, *command, "--rm")

    def start(self, name: str, *command: str) -> None:
        """Starts a container that runs until the end."""
        self._running.append(name)
        self._run(name, *command, "--detach")

    def execute(self, name: str, *command: str) -> None:
        """Runs another program in a container."""
        self._ctr("task", "exec", "--exec-id", secrets.token_hex(8), name, *command)

    def _run(self, name: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        options = [part for part in command if part.startswith("--")]
        program = [part for part in command if not part.startswith("--")]
        image = "local/busybox:1"
        return self._ctr("run", *options, "--net-host", "--snapshotter", "native", image, name, *program, check=check)

    def _ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [self._programs[1], "--address", f"{self._folder}/containerd.sock", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, done.stderr
        return done


class Podman:
    """podman with a storage of its own.

    Args:
        driver: of the storage.
        user: whose podman it is; root's if empty.
    """

    def __init__(self, folder: Path, driver: str = "vfs", user: str = "") -> None:
        self._folder = folder
        self._user = user
        self._runtime = folder / "runtime"
        podman, runc = tool("podman"), tool("runc")
        self._command = [
            podman,
            "--root",
            f"{folder}/storage",
            "--runroot",
            f"{folder}/run",
            "--storage-driver",
            driver,
        ]
        self._command += ["--runtime", str(self._runtime), "--tmpdir", f"{folder}/tmp"]
        self._command += ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self._runc = runc

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._runtime.write_text(f"#!{sys.executable}\nRUNTIME = {self._runc!r}\n{_UNLIMITED}")
        self._runtime.chmod(0o755)
        layer = self._folder / "layer.tar"
        layer.write_bytes(busybox_layer())
        if self._user:
            tool("newuidmap")
            for path in (self._folder, layer, self._runtime):
                shutil.chown(path, self._user, self._user)
        imported = self._podman("import", str(layer), "busybox", check=False)
        tried = imported if imported.returncode else self._podman(*self._run("rover-try", "/bin/true"), check=False)
        if tried.returncode:
            self.__exit__()
            pytest.skip(f"podman runs no container here: {tried.stderr.strip()[-300:]}")
        return self

    def __exit__(self, *_: object) -> None:
        self._podman("rm", "--all", "--force", "--time", "0", check=False)
        self._podman("rmi", "--all", "--force", check=False)
        # What is in overlay's mounts and another user's name spaces is podman's to take away.
        self._podman("unshare", "rm", "-rf", f"{self._folder}/storage", check=False)

    def run(self, name: str, *command: str) -> None:
        """Runs a program in a container of its own, to its end."""
        self._podman(*self._run(name, *command))

    def start(self, name: str, *command: str) -> None:
        """Starts a container that runs until the end."""
        self._podman("run", "--detach", "--name", name, "--network", "host", "busybox", *command)

    def execute(self, name: str, *command: str) -> None:
        """Runs another program in a container."""
        self._podman("exec", name, *command)

    def _run(self, name: str, *command: str) -> Sequence[str]:
        return "run", "--rm", "--name", name, "--network", "host", "busybox", *command

    def _podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*self._command, *arguments]
        environment = dict(os.environ)
        if self._user:
            account = pwd.getpwnam(self._user)
            environment |= {"HOME": account.pw_dir, "USER": self._user, "XDG_RUNTIME_DIR": f"{self._folder}/tmp"}
            groups = ["--reuid", self._user, "--regid", self._user, "--init-groups"]
            (self._folder / "tmp").mkdir(exist_ok=True, mode=0o700)
            shutil.chown(self._folder / "tmp", self._user, self._user)
            command = [tool("setpriv"), *groups, *command]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=self._folder,
        )
        assert not check or done.returncode == 0, done.stderr
        return done


def unpacked(folder: Path) -> Path:
    """The image as a root directory, for runtimes that take one."""
    with tarfile.open(fileobj=io.BytesIO(busybox_layer())) as archive:
        archive.extractall(folder)  # noqa: S202  our own
    (folder / "usr").mkdir()  # without it nspawn takes it for no system
    (folder / "etc/os-release").write_text("ID=busybox\n")
    return folder


def run_lxc(folder: Path, root: Path, name: str, *command: str) -> None:
    """Runs a program in an LXC container of its own, to its end, in the host's network."""
    (folder / name).mkdir(parents=True)
    config = f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:{root}\nlxc.net.0.type = none\n"
    (folder / name / "config").write_text(config + "lxc.apparmor.profile = unconfined\n")
    _run_or_skip([tool("lxc-start"), "-P", str(folder), "-n", name, "--foreground", "--", *command])


def run_nspawn(root: Path, name: str, *command: str) -> None:
    """Runs a program under systemd-nspawn, to its end, in the host's network."""
    options = ["--quiet", f"--machine={name}", f"--directory={root}", "--register=no", "--keep-unit"]
    _run_or_skip([tool("systemd-nspawn"), *options, *command])


def _run_or_skip(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.skip(f"{command[0]} runs no container here: {done.stderr.strip()[-300:]}")


@contextmanager
def user_with_subordinate_ids() -> Iterator[str]:
    """A user that podman can run for (subuid(5)), until the end."""
    name = f"rover-{secrets.token_hex(4)}"
    made = subprocess.run([tool("useradd"), "--create-home", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no user can be made here: {made.stderr.strip()}")
    uid = pwd.getpwnam(name).pw_uid
    try:
        yield name
    finally:
        # podman leaves a process that holds the user's name spaces; userdel wants none.
        theirs = [process for process in psutil.process_iter(["uids"]) if process.info["uids"].real == uid]
        for process in theirs:
            process.kill()
        psutil.wait_procs(theirs, 10)
        subprocess.run([tool("userdel"), "--remove", name], capture_output=True, check=True)
