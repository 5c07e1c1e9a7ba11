# SPDX-License-Identifier: Apache-2.0
"""Which processes a rule chooses, and what is said of a bad one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.discovery.cgroups import Cgroup
from rover_plugin.discovery.container_names import Container
from rover_plugin.discovery.model import ProcessKey
from rover_plugin.discovery.procfs import ProcessFacts
from rover_plugin.discovery.rules import parse_rule, parse_rules, parse_service_rules
from rover_plugin.errors import SettingsError

KEY = "process_discovery.local.include"
CONTAINER = "0123456789abcdef" * 4
FACTS = ProcessFacts(
    ProcessKey(1, 1),
    exe="/usr/sbin/nginx",
    cmdline=("nginx", "-g", "daemon off;"),
    uid=0,
    cgroup=Cgroup("/system.slice/nginx.service", "nginx.service"),
    ports=frozenset({80, 8443}),
)
CONTAINED = replace(FACTS, container=Container(CONTAINER, "cart"))


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("exe=/usr/sbin/nginx", True),
        ("exe = /usr/sbin/nginx ", True),
        ("exe=nginx", True),
        ("exe=/usr/sbin/ngin", False),
        ("exe=ngin", False),
        ("exe~=^/usr/(s?bin)/nginx$", True),
        ("exe~=^nginx", False),
        ("cmdline=nginx -g daemon off;", True),
        ("cmdline=nginx", False),
        ("cmdline~=daemon off", True),
        ("cmdline~=daemon on", False),
        ("port=80", True),
        ("port=443", False),
        ("port=8000-8999", True),
        ("port=81-8442", False),
        ("user=root", True),
        ("user=0", True),
        ("user=daemon", False),
        ("user~=^ro", True),
        ("cgroup=/system.slice", True),
        ("cgroup=system.slice/", True),
        ("cgroup=/", True),
        ("cgroup=/system", False),
        ("cgroup~=nginx", True),
        ("unit=nginx.service", True),
        ("unit=nginx", True),
        ("unit=nginx.scope", False),
        ("unit~=^ng", True),
        ("exe=nginx && port=80", True),
        ("exe=nginx && port=81", False),
    ],
)
def test_a_rule_chooses_by_what_is_known_of_the_process(rule: str, chosen: bool) -> None:
    assert parse_rule(KEY, rule).matches(FACTS) is chosen


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        (f"container={CONTAINER}", True),
        (f"container={CONTAINER[:12]}", True),
        (f"container={CONTAINER[:11]}", False),
        ("container=ffffffffffff", False),
        ("container=cart", True),
        ("container~=^ca", True),
        ("unit=nginx", False),
        ("unit~=^ng", False),
        ("container=cart && unit=nginx", True),
        ("container=cart && unit=apache", False),
    ],
)
def test_a_rule_chooses_by_container_and_a_unit_alone_is_the_hosts(rule: str, chosen: bool) -> None:
    assert parse_rule(KEY, rule).matches(CONTAINED) is chosen


@pytest.mark.parametrize(
    ("container", "rule"),
    [
        (Container(CONTAINER), f"container={CONTAINER[:12]}"),
        (Container(CONTAINER), "container~=^0123"),
        (Container(CONTAINER, "app", "shop", "web-1"), "container=shop/web-1/app"),
        (Container(CONTAINER, "app", "shop", "web-1"), "container~=^shop/"),
        (Container(CONTAINER, "app", "shop", "web-1"), "container=app"),
    ],
)
def test_a_container_goes_by_its_name_its_id_or_its_place_in_the_cluster(container: Container, rule: str) -> None:
    assert parse_rule(KEY, rule).matches(replace(FACTS, container=container))


def test_rules_on_containers_and_units_do_not_choose_a_process_in_none() -> None:
    bare = replace(FACTS, cgroup=Cgroup())
    assert not any(
        parse_rule(KEY, rule).matches(bare) for rule in ("container~=.", "unit~=.", f"container={CONTAINER}")
    )


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("nginx", "is not KEY=VALUE"),
        ("exe=", "is not KEY=VALUE"),
        ("exe=nginx && ", "is not KEY=VALUE"),
        ("colour=red", "none of cgroup, cmdline, container, exe, port, unit, user"),
        ("cmdline~=(", "is not a regular expression"),
        ("port=http", "neither a port nor a range"),
        ("port=0", "neither a port nor a range"),
        ("port=90-80", "neither a port nor a range"),
        ("port=65536", "neither a port nor a range"),
        ("port~=8.", "'port' takes no regular expression"),
    ],
)
def test_a_bad_rule_is_repeated_with_the_key_the_reason_and_the_accepted_forms(rule: str, reason: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_rules(KEY, ["exe=nginx", rule])
    assert f"{KEY}: bad rule {rule!r}" in refusal.value.message
    assert reason in refusal.value.message
    assert "unit=nginx.service" in refusal.value.hint


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_settings_error(text: str) -> None:
    try:
        rule = parse_rule(KEY, text)
    except SettingsError as refusal:
        assert repr(text) in refusal.message  # noqa: PT017  both outcomes are right
    else:
        assert rule.matches(FACTS) in {True, False}


def test_a_service_rule_names_what_its_rule_chooses() -> None:
    (named,) = parse_service_rules(KEY, ["exe=nginx && port=80 -> edge proxy"])
    assert named.service == "edge proxy"
    assert named.rule.matches(FACTS)
    assert named.rule.keys == {"exe", "port"}


@pytest.mark.parametrize("text", ["exe=nginx", "exe=nginx ->", "-> web"])
def test_a_service_rule_without_rule_or_service_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"service rule|bad rule"):
        parse_service_rules(KEY, [text])
