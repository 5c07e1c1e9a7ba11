# SPDX-License-Identifier: Apache-2.0
"""The published contract: keys, variables and defaults that users and other agents' documentation rely on."""

from __future__ import annotations

import re

import pytest

from rover_plugin.settings import load
from rover_plugin.settings.schema import load_schema

CONTRACT = [
    ("logger.level", "ROVER_LOGGER_LEVEL", "INFO"),
    ("core.cluster_name", "ROVER_CORE_CLUSTER_NAME", ""),
    ("core.backend.addr", "ROVER_BACKEND_ADDR", ("localhost:11800",)),
    ("core.backend.enable_TLS", "ROVER_BACKEND_ENABLE_TLS", False),
    ("core.backend.client_pem_path", "ROVER_BACKEND_PEM_PATH", ""),
    ("core.backend.client_key_path", "ROVER_BACKEND_KEY_PATH", ""),
    ("core.backend.ca_pem_path", "ROVER_BACKEND_CA_PEM_PATH", ""),
    ("core.backend.insecure_skip_verify", "ROVER_BACKEND_INSECURE_SKIP_VERIFY", False),
    ("core.backend.check_period", "ROVER_BACKEND_CHECK_PERIOD", 5.0),
    ("core.backend.authentication", "ROVER_BACKEND_AUTHENTICATION", ""),
    ("process_discovery.heartbeat_period", "ROVER_PROCESS_DISCOVERY_HEARTBEAT_PERIOD", 20.0),
    ("process_discovery.properties_report_period", "ROVER_PROCESS_DISCOVERY_PROPERTIES_REPORT_PERIOD", 10),
    ("process_discovery.kubernetes.active", "ROVER_PROCESS_DISCOVERY_KUBERNETES_ACTIVE", False),
    ("process_discovery.kubernetes.node_name", "ROVER_PROCESS_DISCOVERY_KUBERNETES_NODE_NAME", ""),
    ("process_discovery.kubernetes.namespaces", "ROVER_PROCESS_DISCOVERY_KUBERNETES_NAMESPACES", ()),
    ("access_log.active", "ROVER_ACCESS_LOG_ACTIVE", False),
    (
        "access_log.exclude_namespaces",
        "ROVER_ACCESS_LOG_EXCLUDE_NAMESPACES",
        ("istio-system", "cert-manager", "kube-system"),
    ),
    ("access_log.exclude_cluster", "ROVER_ACCESS_LOG_EXCLUDE_CLUSTER", ()),
    ("access_log.flush.max_count", "ROVER_ACCESS_LOG_FLUSH_MAX_COUNT", 2000),
    ("access_log.flush.period", "ROVER_ACCESS_LOG_FLUSH_PERIOD", 5.0),
    (
        "access_log.protocol_analyze.per_cpu_buffer",
        "ROVER_ACCESS_LOG_PROTOCOL_ANALYZE_PER_CPU_BUFFER",
        409_600,
    ),
    ("access_log.protocol_analyze.parallels", "ROVER_ACCESS_LOG_PROTOCOL_ANALYZE_PARALLELS", 2),
    ("access_log.protocol_analyze.queue_size", "ROVER_ACCESS_LOG_PROTOCOL_ANALYZE_QUEUE_SIZE", 5000),
]


@pytest.mark.parametrize(("key", "variable", "default"), CONTRACT)
def test_key_variable_and_default_are_as_published(key: str, variable: str, default: object) -> None:
    assert load(environ={}).get(key) == default
    assert load_schema().by_variable[variable].name == key


def test_every_key_says_what_it_does_and_has_a_variable_of_its_own() -> None:
    keys = load_schema().keys.values()
    assert all(re.fullmatch(r"ROVER_[A-Z0-9_]+", key.variable) for key in keys)
    assert len({key.variable for key in keys}) == len(keys)
    assert [key.name for key in keys if not key.description.endswith(".")] == []


@pytest.mark.parametrize("key", load_schema().keys)
def test_every_default_written_as_text_reads_back_from_its_variable(key: str) -> None:
    settings = load(environ={})
    written = settings.text(key)
    if written:
        again = load(environ={settings.schema.keys[key].variable: written})
        assert again.get(key) == settings.get(key)
        assert again.origin(key) == settings.schema.keys[key].variable


def test_a_default_comes_from_nowhere_else() -> None:
    settings = load(environ={})
    assert {settings.origin(key) for key in settings.schema.keys} == {"default"}
    assert settings.warnings == ()
