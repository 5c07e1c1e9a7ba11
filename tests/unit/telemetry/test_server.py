# SPDX-License-Identifier: Apache-2.0
"""/metrics and /healthz over real HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from rover_plugin.errors import ModuleError
from rover_plugin.host.lifecycle import Stop, run
from rover_plugin.settings import load
from rover_plugin.telemetry import server as server_module
from rover_plugin.telemetry.metrics import Kind, Metric, Sample
from rover_plugin.telemetry.server import TelemetryServer
from rover_plugin.telemetry.telemetry import Histograms, Telemetry
from tests.support.fake_modules import FakeModule
from tests.support.scrape import get, scrape

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def served(telemetry: Telemetry, listen: str = "127.0.0.1:0") -> Iterator[str]:
    with closing(TelemetryServer(listen, telemetry)) as server:
        yield f"http://{server.address}"


def test_counters_gauges_and_histograms_are_served_with_their_labels() -> None:
    telemetry = Telemetry()
    telemetry.counters.add("process_reports_failed", 3, code="UNAVAILABLE")
    telemetry.register(lambda: [Sample("rover_ring_bytes", 7, ("0",)), Sample("rover_ring_bytes", 9, ("1",))])
    lag = Histograms("rover_capture_lag_seconds", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 70):
        lag.observe(value, ("0",))
    telemetry.register_histograms(lag)
    with served(telemetry) as url:
        found = scrape(url)
    assert found["rover_process_reports_failed_total", "UNAVAILABLE"] == 3
    assert found["rover_ring_bytes", "1"] == 9
    buckets = {key[1]: value for key, value in found.items() if key[0] == "rover_capture_lag_seconds_bucket"}
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert found["rover_capture_lag_seconds_count", "0"] == 4
    assert found["rover_capture_lag_seconds_sum", "0"] == pytest.approx(70.65)


def test_openmetrics_is_spoken_to_those_who_ask() -> None:
    telemetry = Telemetry()
    telemetry.counters.add("process_events_lost", 2)
    with served(telemetry) as url:
        _, content_type, text = get(f"{url}/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(text)} == {"rover_info", "rover_process_events_lost"}


def test_modules_of_others_bring_definitions_of_their_own() -> None:
    telemetry = Telemetry()
    metric = Metric("shop_orders", Kind.COUNTER, "Orders.", ("kind",))
    telemetry.register(lambda: [Sample("shop_orders", 5, ("web",))], [metric])
    with served(telemetry) as url:
        assert scrape(url)["shop_orders_total", "web"] == 5


def test_health_is_200_when_all_is_well_and_503_with_the_reasons_otherwise() -> None:
    telemetry = Telemetry()
    reason = ""
    telemetry.check("feed", lambda: reason)
    with served(telemetry) as url:
        status, content_type, body = get(f"{url}/healthz")
        assert (status, content_type) == (503, "application/json")
        assert json.loads(body) == {"healthy": False, "reasons": {"host": "starting"}}
        telemetry.phase = ""
        assert get(f"{url}/healthz")[0] == 200
        reason = "the process feed is stale"
        status, _, body = get(f"{url}/healthz")
        assert (status, json.loads(body)["reasons"]) == (503, {"feed": "the process feed is stale"})


def test_probe_counts_are_wanted_only_by_scrapes_that_say_so() -> None:
    telemetry = Telemetry()
    wishes: list[int] = []
    telemetry.on_probes_wanted(lambda: wishes.append(1))
    with served(telemetry) as url:
        get(f"{url}/metrics")
        get(f"{url}/metrics?probes=0")
        assert wishes == []
        get(f"{url}/metrics?probes=1")
        assert wishes == [1]


def test_other_paths_are_unknown() -> None:
    with served(Telemetry()) as url:
        assert get(f"{url}/")[0] == 404


def test_a_source_that_fails_makes_a_scrape_fail_and_not_the_server() -> None:
    telemetry = Telemetry()
    telemetry.register(lambda: [Sample("rover_feed_age_seconds", 1 / len([]))])
    with served(telemetry) as url:
        assert get(f"{url}/metrics")[0] == 500
        assert get(f"{url}/healthz")[0] == 503


def test_beyond_the_bound_the_oldest_connection_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MOST_AT_ONCE", 2)
    with served(Telemetry()) as url:
        host, port = url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), 10) for _ in range(3)]
        try:
            assert silent[0].recv(1) == b""
            for client in silent[1:]:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.0 200"
        finally:
            for client in silent:
                client.close()


def test_whoever_holds_all_places_keeps_nobody_out() -> None:
    with served(Telemetry()) as url:
        host, port = url.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port)), 10) for _ in range(20)]
        try:
            for client in held[-8:]:
                client.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
            for _ in range(20):
                assert get(f"{url}/metrics")[0] == 200
        finally:
            for client in held:
                client.close()


def test_a_request_has_a_deadline_however_steadily_it_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_REQUEST_S", 0.5)
    with served(Telemetry()) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 0.05) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
            for _ in range(600):
                try:
                    client.sendall(b"a")
                    ended = client.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    ended = True
                assert ended
                break
            else:
                pytest.fail("it may drip for ever")
        assert get(f"{url}/metrics")[0] == 200


def test_ipv6_and_all_addresses_can_be_listened_on() -> None:
    for listen in ("[::1]:0", ":0"):
        with served(Telemetry(), listen) as url:
            port = url.rpartition(":")[2]
            host = "[::1]" if "::1" in listen else "127.0.0.1"
            assert get(f"http://{host}:{port}/metrics")[0] == 200


def test_an_address_in_use_is_one_clear_error_before_any_module_starts() -> None:
    events: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = load(environ={"ROVER_TELEMETRY_LISTEN": listen})
        with pytest.raises(ModuleError, match=rf"cannot serve telemetry on {listen}: Address already in use") as caught:
            run([FakeModule("a", events=events)], settings, Stop())
    assert caught.value.exit_code == 1
    assert events == []


def test_it_is_served_from_before_the_first_start_until_after_the_last_shutdown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    settings = load(environ={"ROVER_TELEMETRY_LISTEN": listen})
    stop = Stop()
    phases: list[object] = []

    def look() -> None:
        phases.append(json.loads(get(f"http://{listen}/healthz")[2])["reasons"].get("host"))

    run([FakeModule("a", on={"start": look, "notify": stop.request, "shutdown": look})], settings, stop)
    assert phases == ["starting", "stopping"]
    with pytest.raises(urllib.error.URLError):
        get(f"http://{listen}/healthz")
