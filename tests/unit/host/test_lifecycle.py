# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NoReturn

import pytest
from structlog.testing import capture_logs

from rover_plugin.errors import CaptureError, ModuleError, SettingsError
from rover_plugin.host.lifecycle import Stop, run
from rover_plugin.settings import load
from tests.support.fake_modules import FakeModule

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = load(environ={"ROVER_ACCESS_LOG_FLUSH_PERIOD": "7s"})


def modules(**on: dict[str, Callable[[], None]]) -> tuple[list[FakeModule], list[str]]:
    events: list[str] = []
    return [FakeModule(name, events=events, on=on.get(name, {})) for name in ("a", "b", "c")], events


def raising(error: Exception) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


def test_modules_start_in_order_are_notified_after_all_started_and_shut_down_in_reverse() -> None:
    stop = Stop()
    parts, events = modules(c={"notify": stop.request})
    run(parts, SETTINGS, stop)
    assert events == [
        *("a start", "b start", "c start"),
        *("a notify", "b notify", "c notify"),
        *("c shutdown", "b shutdown", "a shutdown"),
    ]


def test_the_log_names_the_modules_before_and_after_the_start() -> None:
    stop = Stop()
    parts, _ = modules(c={"notify": stop.request})
    with capture_logs() as logs:
        run(parts, SETTINGS, stop)
    assert [(line["event"], line.get("modules")) for line in logs] == [
        ("rover_starting", ["a", "b", "c"]),
        ("rover_started", ["a", "b", "c"]),
        ("rover_stopped", None),
    ]


def test_the_host_runs_until_another_thread_asks_it_to_stop() -> None:
    stop = Stop()
    notified = threading.Event()
    parts, events = modules(c={"notify": notified.set})
    host = threading.Thread(target=run, args=(parts, SETTINGS, stop))
    host.start()
    assert notified.wait(10)
    stop.request()
    host.join(10)
    assert not host.is_alive()
    assert events[-1] == "a shutdown"


def test_a_module_sees_those_started_before_it() -> None:
    stop = Stop()
    parts, _ = modules()
    seen: list[list[str]] = []
    for part in parts:
        part.on["start"] = lambda part=part: seen.append(list(part.context.modules))
    parts[2].on["notify"] = stop.request
    run(parts, SETTINGS, stop)
    assert seen == [[], ["a"], ["a", "b"]]
    assert parts[0].context.settings is SETTINGS
    assert parts[0].context.counters is parts[2].context.counters


def test_the_first_failed_start_shuts_down_only_what_started_in_reverse() -> None:
    parts, events = modules(c={"start": raising(CaptureError("no BTF", hint="boot another kernel"))})
    with pytest.raises(ModuleError) as caught:
        run(parts, SETTINGS, Stop())
    assert events == ["a start", "b start", "c start", "b shutdown", "a shutdown"]
    assert str(caught.value) == "module c could not start: no BTF: boot another kernel"
    assert caught.value.exit_code == 1


def test_a_bug_in_a_start_is_named_by_its_type_and_kept_as_the_cause() -> None:
    bug = ZeroDivisionError("by zero")
    parts, _ = modules(a={"start": raising(bug)})
    with pytest.raises(ModuleError, match="module a could not start: ZeroDivisionError: by zero") as caught:
        run(parts, SETTINGS, Stop())
    assert caught.value.__cause__ is bug


def test_a_setting_a_module_refuses_is_reported_with_where_it_was_set() -> None:
    refusal = SettingsError("access_log.flush.period is odd", hint="use 8s", key="access_log.flush.period")
    parts, _ = modules(a={"start": raising(refusal)})
    with pytest.raises(ModuleError, match=r"is odd \(set by ROVER_ACCESS_LOG_FLUSH_PERIOD\): use 8s") as caught:
        run(parts, SETTINGS, Stop())
    assert caught.value.exit_code == 1


def test_a_failed_notification_shuts_all_down() -> None:
    parts, events = modules(b={"notify": raising(RuntimeError("late"))})
    with pytest.raises(ModuleError, match="module b failed after its start: RuntimeError: late"):
        run(parts, SETTINGS, Stop())
    assert events[-4:] == ["b notify", "c shutdown", "b shutdown", "a shutdown"]


@pytest.mark.parametrize("early", [True, False])
def test_a_stop_ends_what_a_start_waits_for_and_is_no_failure(early: bool) -> None:
    stop = Stop()
    waiting = threading.Event()
    parts, events = modules()

    def start() -> None:
        if early:
            stop.request()
        else:
            threading.Thread(target=stop.request).start()
        with parts[1].context.starting.interrupting(waiting.set):
            assert waiting.wait(30)

    parts[1].on["start"] = start
    with capture_logs() as logs:
        run(parts, SETTINGS, stop)
    assert events == ["a start", "b start", "a shutdown"]
    assert [line["event"] for line in logs] == ["rover_starting", "rover_stopped"]


def test_a_stop_during_the_start_lets_the_rest_unstarted() -> None:
    stop = Stop()
    parts, events = modules(a={"start": stop.request})
    run(parts, SETTINGS, stop)
    assert events == ["a start", "a shutdown"]


def test_a_module_may_fail_the_host_at_any_time_from_any_thread() -> None:
    stop = Stop()
    parts, events = modules()

    def fail_twice() -> None:
        thread = threading.Thread(target=parts[0].context.fail, args=(CaptureError("ring gone", hint="restart"),))
        thread.start()
        thread.join()
        parts[0].context.fail(CaptureError("consequence"))

    parts[2].on["notify"] = fail_twice
    with pytest.raises(ModuleError, match=r"^a module failed: ring gone: restart$"):
        run(parts, SETTINGS, stop)
    assert events[-3:] == ["c shutdown", "b shutdown", "a shutdown"]


def test_what_fails_in_a_shutdown_is_a_warning_and_the_others_are_shut_down() -> None:
    stop = Stop()
    parts, events = modules(b={"shutdown": raising(OSError("stuck"))}, c={"notify": stop.request})
    with capture_logs() as logs:
        run(parts, SETTINGS, stop)
    assert events[-3:] == ["c shutdown", "b shutdown", "a shutdown"]
    assert [(line["event"], line["module"], line["error"]) for line in logs if line["log_level"] == "warning"] == [
        ("module_shutdown_failed", "b", "stuck")
    ]


def test_the_start_failure_is_what_is_reported_not_a_failure_while_cleaning_up() -> None:
    parts, _ = modules(a={"shutdown": raising(OSError("stuck"))}, b={"start": raising(CaptureError("first"))})
    with pytest.raises(ModuleError, match="module b could not start: first"):
        run(parts, SETTINGS, Stop())
