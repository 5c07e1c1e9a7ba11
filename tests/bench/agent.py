# SPDX-License-Identifier: Apache-2.0
"""The whole agent beside a real server: what it costs the server, what it costs itself, how much it can take.

As root: `make bench`, or `python tests/bench/agent.py [--scenario NAME]… [--rounds N] [--seconds S] [--json FILE]`.

Each scenario alternates rounds without and with the agent, so that a machine whose speed drifts slows both alike. In a
round the server is saturated by wrk, then loaded at a fixed rate by h2load. The server has CPU 0 to itself; load
generator and agent share CPU 1. What the kernel side costs the server is its CPU time for a request at the fixed rate:
saturated, it also does more with each wake-up the faster the generator is. `lossless` takes pins off and looks for the
highest rate at which the agent, writing `jsonl`, loses nothing on the CPUs that it shares with server and load.
`pace` is the time a fixed Python loop takes here and now; figures of runs with another pace do not compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import timeit
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.agent import Agent, needs_bpf
from tests.support.servers import Nginx, tool

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 32
FIXED_RATE = 8000
SERVER_CPU = {0}
OTHER_CPU = {1}

_LOCATIONS = """
    location / { return 200 "hello\\n"; }
    location /files/ { }
    location /ssi/ { ssi on; }
"""
SCENARIOS = {"return 200": "/", "100 KB file": "/files/100k", "chunked": "/ssi/page.html"}


@dataclass
class Round:
    """One saturated and one fixed-rate run. Times in microseconds."""

    requests_per_s: float = 0.0
    server_us: float = 0.0  # CPU per request at the fixed rate
    p50_us: float = 0.0  # latency at the fixed rate
    p99_us: float = 0.0
    agent_us: float = 0.0  # CPU per exchange that came out, all its processes
    workers_us: float = 0.0
    main_us: float = 0.0
    exchanges: int = 0
    lost: int = 0


@dataclass
class Scenario:
    """What a scenario showed."""

    name: str
    off: list[Round] = field(default_factory=list)
    on: list[Round] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Medians, and ratios of rounds that followed each other."""
        pairs = list(zip(self.off, self.on, strict=True))
        median = statistics.median
        return {
            "requests_per_s_off": median(off.requests_per_s for off in self.off),
            "throughput_ratio": median(on.requests_per_s / off.requests_per_s for off, on in pairs),
            "server_us_off": median(off.server_us for off in self.off),
            "added_us": median(on.server_us - off.server_us for off, on in pairs),
            "p50_us_off": median(off.p50_us for off in self.off),
            "p50_ratio": median(on.p50_us / off.p50_us for off, on in pairs),
            "p99_us_off": median(off.p99_us for off in self.off),
            "p99_ratio": median(on.p99_us / off.p99_us for off, on in pairs),
            "agent_us": median(on.agent_us for on in self.on),
            "workers_us": median(on.workers_us for on in self.on),
            "main_us": median(on.main_us for on in self.on),
            "lost": sum(on.lost for on in self.on),
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGESIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "pace_us": round(pace_us(), 2),
    }


def pace_us() -> float:
    """The least time of a fixed loop: 100 additions."""
    return min(timeit.repeat("for i in range(100): n += i", "n = 0", number=1000, repeat=50)) * 1000


def children(pid: int) -> list[int]:
    """Direct and indirect child processes."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


def cpu_us(pids: list[int]) -> float:
    """CPU time the processes have used so far, all threads."""
    used = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                used += int((task / "schedstat").read_text().split()[0])
    return used / 1000


def memory_bytes(pids: list[int]) -> int:
    """Proportional set size of all the processes together."""
    total = 0
    for pid in pids:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def pin(pid: int, cpus: set[int]) -> None:
    """Pins a process with all its threads and children."""
    for each in [pid, *children(pid)]:
        for task in Path(f"/proc/{each}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)


def load(command: list[str], cpus: set[int] | None) -> str:
    """Runs a load generator; returns what it prints."""
    if cpus is not None:
        command = ["taskset", "-c", ",".join(map(str, cpus)), *command]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def saturate(url: str, seconds: int, cpus: set[int] | None = OTHER_CPU) -> tuple[int, float]:
    """Requests answered, and how many a second."""
    command = [tool("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url]
    printed = load(command, cpus)
    requests = re.search(r"(\d+) requests in", printed)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    assert requests is not None, printed
    assert rate is not None, printed
    return int(requests[1]), float(rate[1])


def at_rate(url: str, rate: int, seconds: int, log: Path | None, cpus: set[int] | None) -> int:
    """Loads at a fixed rate; returns requests answered. `log` gets a line for each."""
    log_option = [f"--log-file={log}"] if log is not None else []
    per_client = max(1, rate // CONNECTIONS)
    printed = load(
        [tool("h2load"), "--h1", f"--rps={per_client}", f"-c{CONNECTIONS}", "-t1", f"-D{seconds}", *log_option, url],
        cpus,
    )
    found = re.search(r"(\d+) succeeded", printed)
    assert found is not None, printed
    return int(found[1])


def latencies_us(log: Path) -> tuple[float, float]:
    """Median and 99th percentile."""
    times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    log.unlink()
    return times[len(times) // 2], times[len(times) * 99 // 100]


@contextlib.contextmanager
def agent_for(folder: Path, nginx: Nginx, *, pinned: bool) -> Iterator[Agent]:
    """The agent, watching this server and not its clients, writing jsonl that is thrown away."""
    settings = (f"process_discovery.local.include=port={nginx.port}", "access_log.jsonl.path=/dev/null")
    with Agent(folder, "jsonl", *settings) as agent:
        if pinned:
            pin(agent.pid, OTHER_CPU)
        yield agent


def one_round(nginx: Nginx, path: str, seconds: int, folder: Path) -> Round:
    """Both runs."""
    result = Round()
    url = nginx.url(path)
    servers = [nginx.pid, *children(nginx.pid)]
    saturate(url, 1)
    _, result.requests_per_s = saturate(url, seconds)
    log = folder / "latency.tsv"
    before = cpu_us(servers)
    requests = at_rate(url, FIXED_RATE, seconds, log, OTHER_CPU)
    result.server_us = (cpu_us(servers) - before) / requests
    result.p50_us, result.p99_us = latencies_us(log)
    return result


def round_with_agent(nginx: Nginx, path: str, seconds: int, folder: Path) -> Round:
    """The same under the agent."""
    with agent_for(folder, nginx, pinned=True) as agent:
        main, workers = [agent.pid], children(agent.pid)
        before = cpu_us(main), cpu_us(workers)
        result = one_round(nginx, path, seconds, folder)
        # What it was still reading when the load ended is not over yet: at most a ring's worth.
        main_us, workers_us = cpu_us(main) - before[0], cpu_us(workers) - before[1]
        totals = stop(agent)
    result.exchanges = totals["exchanges_out"]
    result.main_us, result.workers_us = main_us / result.exchanges, workers_us / result.exchanges
    result.agent_us = result.main_us + result.workers_us
    result.lost = lost(totals)
    return result


def stop(agent: Agent) -> dict[str, Any]:
    """Stops the agent; its totals."""
    assert agent.stop() == 0, agent.text
    totals = agent.wait_for_event("access_log_totals")
    assert totals["imbalance"] == 0, totals
    return totals


def lost(totals: dict[str, Any]) -> int:
    """Records lost in the ring, and logs lost behind it."""
    return sum(count for name, count in totals.items() if "protocol_lost_" in name) + totals["lost_ring"]


def run_scenario(name: str, rounds: int, seconds: int) -> Scenario:
    """Alternates off and on."""
    scenario = Scenario(name)
    with server() as (nginx, folder):
        pin(nginx.pid, SERVER_CPU)
        for number in range(rounds):
            scenario.off.append(one_round(nginx, SCENARIOS[name], seconds, folder))
            home = folder / f"agent{number}"
            home.mkdir()
            scenario.on.append(round_with_agent(nginx, SCENARIOS[name], seconds, home))
    return scenario


@contextlib.contextmanager
def server() -> Iterator[tuple[Nginx, Path]]:
    """nginx with every scenario's path, and a folder."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        with Nginx(folder / "nginx", locations=_LOCATIONS) as nginx:
            (nginx.files / "100k").write_bytes(os.urandom(100 * 1024))
            page = nginx.files.parent / "ssi" / "page.html"
            page.parent.mkdir()
            page.write_text("<p>some words that stand before</p>" * 40 + '<!--#echo var="request_uri" -->\n')
            for made in (nginx.files, page.parent):
                made.chmod(0o755)
            yield nginx, folder


def lossless(seconds: int) -> dict[str, float]:
    """Halves the span between a rate that lost nothing and one that lost something, unpinned."""
    with server() as (nginx, folder):
        url = nginx.url("/")
        low, low_us, high = 0, 0.0, 0
        _, most = saturate(url, 2, None)
        rate = int(most * 0.9)
        for step in range(7):
            home = folder / f"step{step}"
            home.mkdir()
            with agent_for(home, nginx, pinned=False) as agent:
                pids = [agent.pid, *children(agent.pid)]
                before = cpu_us(pids)
                answered = at_rate(url, rate, seconds, None, None)
                used = cpu_us(pids) - before
                missing = lost(stop(agent))
            reached = answered // seconds
            print(f"  asked for {rate}/s, answered {reached}/s, lost {missing}", file=sys.stderr)
            if missing == 0 and reached > low:
                low, low_us = reached, used / answered
            if missing:
                high = rate
            elif reached < rate * 0.95:
                break  # more than this the machine does not answer
            rate = (low + high) // 2 if high else int(rate * 1.3)
            if high and high - low < high * 0.05:
                break
        return {"lossless_per_s": low, "agent_us_there": low_us, "without_agent_per_s": most}


def idle() -> dict[str, float]:
    """Memory of an agent that has nothing to do."""
    with server() as (nginx, folder), agent_for(folder, nginx, pinned=False) as agent:
        at_rate(nginx.url("/"), 100, 1, None, None)
        pids = [agent.pid, *children(agent.pid)]
        return {"idle_pss_bytes": memory_bytes(pids), "processes": len(pids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS, "lossless", "idle"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    arguments = parser.parse_args()
    if reason := needs_bpf():
        print(f"left out: {reason}")
        return
    wanted = arguments.scenario or [*SCENARIOS, "lossless", "idle"]
    report: dict[str, Any] = {"machine": machine(), "scenarios": {}}
    print("  ".join(f"{key} {value}" for key, value in report["machine"].items()))
    for name in [name for name in SCENARIOS if name in wanted]:
        scenario = run_scenario(name, arguments.rounds, arguments.seconds)
        figures = scenario.figures()
        report["scenarios"][name] = {"figures": figures, "off": [asdict(each) for each in scenario.off]}
        report["scenarios"][name]["on"] = [asdict(each) for each in scenario.on]
        print(
            f"{name:<12} off {figures['requests_per_s_off']:>7.0f}/s"
            f" | on: throughput x{figures['throughput_ratio']:.3f}"
            f" | at {FIXED_RATE}/s: server +{figures['added_us']:.2f} us to {figures['server_us_off']:.1f},"
            f" p50 x{figures['p50_ratio']:.2f} of {figures['p50_us_off']:.0f} us,"
            f" p99 x{figures['p99_ratio']:.2f} of {figures['p99_us_off']:.0f} us"
            f" | agent {figures['agent_us']:.1f} us/exchange"
            f" (workers {figures['workers_us']:.1f}, main {figures['main_us']:.1f}), lost {figures['lost']:.0f}"
            f" | pace {pace_us():.2f} us",
            flush=True,
        )
    if "lossless" in wanted:
        report["lossless"] = found = lossless(4)
        print(
            f"lossless     {found['lossless_per_s']:.0f} exchanges/s, agent {found['agent_us_there']:.1f} us each"
            f" (the machine answers {found['without_agent_per_s']:.0f}/s without the agent)"
        )
    if "idle" in wanted:
        report["idle"] = found = idle()
        print(f"idle         {found['idle_pss_bytes'] / 2**20:.1f} MiB PSS in {found['processes']} processes")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
