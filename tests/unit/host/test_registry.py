# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from rover_plugin.errors import ModuleError, NothingActiveError, PrivilegeError, UnknownModuleError
from rover_plugin.host.registry import describe, plan, registered
from rover_plugin.settings import load
from tests.support.fake_modules import FakeModule, install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from rover_plugin.host.module import Module

SETTINGS = load(environ={})


def factories(*modules: FakeModule) -> dict[str, Callable[[], FakeModule]]:
    return {module.name: lambda module=module: module for module in modules}


def names(modules: Iterable[Module]) -> list[str]:
    return [module.name for module in modules]


def test_required_modules_are_pulled_in_and_come_first() -> None:
    known = factories(FakeModule("c", ("b", "a")), FakeModule("b", ("a",)), FakeModule("a"), FakeModule("other"))
    wanted = plan(["c"], SETTINGS, known)
    assert names(wanted.started) == names(wanted.loaded) == ["a", "b", "c"]


def test_modules_that_do_not_need_each_other_keep_the_order_of_the_command_line() -> None:
    known = factories(FakeModule("a"), FakeModule("b"), FakeModule("c"))
    assert names(plan(["b", "c", "a", "b"], SETTINGS, known).started) == ["b", "c", "a"]


def test_an_inactive_named_module_is_loaded_with_what_it_requires_but_nothing_of_it_is_started() -> None:
    known = factories(FakeModule("a"), FakeModule("b", ("d",), is_active=False), FakeModule("d"))
    wanted = plan(["a", "b"], SETTINGS, known)
    assert names(wanted.loaded) == ["a", "d", "b"]
    assert names(wanted.started) == ["a"]


def test_a_required_module_is_started_even_if_inactive() -> None:
    known = factories(FakeModule("a", ("b",)), FakeModule("b", is_active=False))
    assert names(plan(["a"], SETTINGS, known).started) == ["b", "a"]


def test_with_nothing_active_the_error_says_which_key_or_variable_activates() -> None:
    known = factories(FakeModule("access_log", ("core",), is_active=False), FakeModule("core"))
    with pytest.raises(NothingActiveError) as caught:
        plan(["access_log"], SETTINGS, known)
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "no module is active: access_log: set access_log.active = true in a --config file, "
        "ROVER_ACCESS_LOG_ACTIVE=true, or --set access_log.active=true"
    )


def test_an_inactive_module_without_a_key_refers_to_its_documentation() -> None:
    with pytest.raises(NothingActiveError, match="x decides by itself"):
        plan(["x"], SETTINGS, factories(FakeModule("x", is_active=False)))


def test_a_cycle_is_an_error_that_names_its_modules_only() -> None:
    known = factories(FakeModule("a", ("b",)), FakeModule("b", ("c",)), FakeModule("c", ("b",)))
    with pytest.raises(ModuleError, match="in a circle: b → c → b:"):
        plan(["a"], SETTINGS, known)


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UnknownModuleError, match=r"^unknown module acess_log: did you mean access_log\?$") as caught:
        plan(["acess_log"], SETTINGS, factories(FakeModule("access_log")))
    assert caught.value.exit_code == 2


def test_an_unknown_name_like_no_other_is_an_error_with_all_names() -> None:
    with pytest.raises(UnknownModuleError, match="unknown module zzz: registered are a, b"):
        plan(["zzz"], SETTINGS, factories(FakeModule("b"), FakeModule("a")))
    with pytest.raises(UnknownModuleError, match="registered are none"):
        plan(["zzz"], SETTINGS, {})


def test_an_unknown_required_module_is_named_with_who_requires_it() -> None:
    with pytest.raises(UnknownModuleError, match="unknown module gone, required by a"):
        plan(["a"], SETTINGS, factories(FakeModule("a", ("gone",))))


def _broken() -> NoReturn:
    message = "No module named 'lost'"
    raise ImportError(message)


def _refusing() -> NoReturn:
    message = "needs root"
    raise PrivilegeError(message)


def test_a_module_that_cannot_be_imported_is_an_error_that_names_it() -> None:
    with pytest.raises(ModuleError, match="module a cannot be loaded: ImportError: No module named 'lost'") as caught:
        plan(["a"], SETTINGS, {"a": _broken})
    assert isinstance(caught.value.__cause__, ImportError)


def test_an_error_of_our_own_at_loading_is_passed_on_as_it_is() -> None:
    with pytest.raises(PrivilegeError, match="needs root"):
        plan(["a"], SETTINGS, {"a": _refusing})


def test_describe_tells_active_inactive_and_broken_apart() -> None:
    known = factories(FakeModule("on", ("off",)), FakeModule("off", is_active=False)) | {"bad": _broken}
    assert describe(SETTINGS, known) == [
        ("bad", "broken", "module bad cannot be loaded: ImportError: No module named 'lost'"),
        ("off", "inactive", ""),
        ("on", "active", "requires off"),
    ]


def test_the_projects_own_modules_are_registered() -> None:
    assert {"core", "process_discovery", "access_log"} <= registered().keys()


def test_modules_of_other_distributions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert registered()["beta"]().requires == ("alpha",)


def test_a_name_that_two_distributions_claim_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "rival-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rover.modules]\ncore = rival:Core\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleError, match=r"module core is registered twice, as .*rival:Core"):
        registered()
