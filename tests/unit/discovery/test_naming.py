# SPDX-License-Identifier: Apache-2.0
"""What local processes are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.discovery.cgroups import Cgroup
from rover_plugin.discovery.container_names import Container
from rover_plugin.discovery.local_finder import LocalFinder
from rover_plugin.discovery.model import Entity, ProcessKey
from rover_plugin.discovery.naming import MAX_NAME, bounded, executable_name, program_name, service_name
from rover_plugin.discovery.procfs import ProcessFacts
from rover_plugin.discovery.rules import parse_rules, parse_service_rules


def facts(exe: str, *cmdline: str, cgroup: Cgroup = Cgroup(), comm: str = "") -> ProcessFacts:  # noqa: B008  frozen
    return ProcessFacts(ProcessKey(7, 1), exe=exe, cmdline=cmdline, cgroup=cgroup, comm=comm)


@pytest.mark.parametrize(
    ("cmdline", "name"),
    [
        ("/usr/sbin/nginx -g x", "nginx"),
        ("/usr/bin/python3 /srv/shop.py --port 80", "shop"),
        ("/usr/bin/python3.11 -u -W ignore -X dev shop/app.py", "app"),
        ("/usr/bin/python3 -m http.server 8000", "http.server"),
        ("/usr/bin/python3 -I -m uvicorn shop:app", "uvicorn"),
        ("/usr/bin/python3 /usr/bin/gunicorn shop:app", "gunicorn"),
        ("/usr/bin/python3 -c print()", "python3"),
        ("/usr/bin/python3", "python3"),
        ("/usr/bin/node --max-old-space-size=4096 -r dotenv/config /srv/cart.js", "cart"),
        ("/usr/bin/node -e 1", "node"),
        ("/opt/jdk/bin/java -Xmx1g -jar /srv/cart-1.2.jar --spring", "cart-1.2"),
        ("/opt/jdk/bin/java -cp lib/*:x.jar -Da=b com.example.Main arg", "com.example.Main"),
        ("/opt/jdk/bin/java -p mods -m com.shop/com.shop.Main", "com.shop"),
        ("/opt/jdk/bin/java @arguments com.example.Main", "com.example.Main"),
        ("/usr/bin/ruby -I lib bin/puma.rb", "puma"),
        ("/usr/bin/bash -c sleep", "bash"),
        ("/usr/bin/dash ./run.sh", "run"),
    ],
)
def test_the_program_is_what_an_interpreter_runs(cmdline: str, name: str) -> None:
    exe, *_ = arguments = cmdline.split(" ")
    assert program_name(facts(exe, *arguments)) == name


def test_a_title_written_over_the_arguments_names_the_program() -> None:
    assert program_name(facts("/usr/bin/python3.11", "gunicorn: master [shop]")) == "gunicorn"


def test_a_process_whose_executable_cannot_be_read_has_the_kernels_name_for_it() -> None:
    assert executable_name(facts("", comm="nginx")) == "nginx"


CONTAINER = "ab" * 32


@pytest.mark.parametrize(
    ("cgroup", "container", "service"),
    [
        (Cgroup(unit="nginx.service"), None, "nginx"),
        (Cgroup(unit="postgresql@15-main.service"), Container(CONTAINER, "db"), "db/postgresql@15-main"),
        (Cgroup(unit="user@1000.service", generic=True), None, "shop"),
        (Cgroup(unit="session-3.scope", generic=True), None, "shop"),
        (Cgroup(unit="init.scope", generic=True), Container("web", "web"), "web"),
        (Cgroup(), Container(CONTAINER), CONTAINER[:12]),
        (Cgroup(), Container(CONTAINER, "app", "ns", "web-1"), "ns/web-1/app"),
        (Cgroup(), None, "shop"),
    ],
)
def test_the_service_is_the_unit_the_container_or_both_else_the_program(
    cgroup: Cgroup, container: Container | None, service: str
) -> None:
    found = facts("/usr/bin/python3", "python3", "shop.py", cgroup=cgroup)
    assert service_name(replace(found, container=container)) == service


def test_the_entity_of_a_pods_process_carries_namespace_pod_and_container() -> None:
    found = replace(facts("/usr/bin/app"), container=Container(CONTAINER, "app", "ns", "web-1"))
    (entity,) = LocalFinder("OS_LINUX", "host-1").entities(found)
    assert (entity.namespace, entity.pod, entity.container) == ("ns", "web-1", "app")


@given(st.text(max_size=200), st.text(max_size=200))
def test_cut_names_fit_the_backend_and_stay_distinct(one: str, other: str) -> None:
    assert len(bounded(one)) <= MAX_NAME
    assert (bounded(one) == bounded(other)) == (one == other)
    assert len(one) > MAX_NAME or bounded(one) == one


@given(st.lists(st.text(max_size=12), max_size=6), st.sampled_from(["python3", "node", "java", "bash", "x"]))
def test_any_command_line_yields_a_name(arguments: list[str], exe: str) -> None:
    assert isinstance(program_name(facts(exe, *arguments)), str)


def test_without_rules_every_process_has_an_entity() -> None:
    finder = LocalFinder("OS_LINUX", "host-1")
    assert finder.entities(facts("/usr/bin/python3.11", "python3", "shop.py")) == (
        Entity("OS_LINUX", "shop", "host-1", "python3.11"),
    )


def test_include_chooses_exclude_wins_and_the_first_service_rule_names() -> None:
    finder = LocalFinder(
        "GENERAL",
        "host-1",
        include=parse_rules("k", ["exe=nginx", "exe=node"]),
        exclude=parse_rules("k", ["cmdline~=test"]),
        service_rules=parse_service_rules("k", ["exe=nginx -> edge", "exe~=n -> late"]),
        cluster="east",
    )
    assert finder.entities(facts("/bin/redis")) == ()
    assert finder.entities(facts("/bin/node", "node", "test.js")) == ()
    (edge,), (late,) = finder.entities(facts("/bin/nginx")), finder.entities(facts("/bin/node", "node", "x.js"))
    assert (edge.service, edge.cluster, edge.layer) == ("east::edge", "east", "GENERAL")
    assert late.service == "east::late"
    assert Path(edge.process).name == "nginx"
