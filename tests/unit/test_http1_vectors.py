# SPDX-License-Identifier: Apache-2.0
"""Other projects' test messages, whole and cut at every byte: read as those projects read them.

What gunicorn refuses need not be refused here: the log says what was said, not what should have been. It must only not
break anything.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rover_plugin.access_log import conversation as detecting
from rover_plugin.access_log.model import Call, Direction, Operation, Role
from rover_plugin.access_log.protocols import texts
from tests.support.http1 import Conversation, framing

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Exchange

DATA = Path(__file__).parents[1] / "data" / "http1"


@cache
def vectors(name: str) -> dict[str, dict[str, Any]]:
    lines = (DATA / f"{name}.jsonl").read_text().splitlines()
    return {item["name"]: item for item in map(json.loads, lines)}


def _run(requests: list[bytes], responses: list[bytes]) -> list[Exchange]:
    conversation = Conversation()
    for part in requests:
        conversation.request(part)
    for part in responses:
        conversation.response(part)
    return conversation.close()


def _path(target: str, method: str) -> str:
    if method == "CONNECT":
        return ""
    if "://" in target.partition("?")[0]:
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.partition("?")[0].partition("#")[0]


BEHIND_PROXY_HEADER = [name for name in vectors("gunicorn") if name.startswith("valid/pp_")]
VALID = [name for name in vectors("gunicorn") if name.startswith("valid/") and name not in BEHIND_PROXY_HEADER]
INVALID = [name for name in vectors("gunicorn") if name.startswith("invalid/")]


@pytest.mark.parametrize("name", VALID)
def test_gunicorns_valid_requests(name: str) -> None:
    vector = vectors("gunicorn")[name]
    exchanges = _run([base64.b64decode(vector["bytes"])], [])
    # gunicorn stops where a connection is to be closed, and may make methods upper case.
    said = [((item.method or "").upper(), item.path, item.request_body_bytes) for item in exchanges]
    expected = [
        (item["method"].upper(), _path(item["target"], item["method"])[: texts.MAX_PATH], item["body"])
        for item in vector["expected"]
    ]
    assert said[: len(expected)] == expected
    for exchange, item in zip(exchanges, vector["expected"], strict=False):
        if "://" not in item["target"] and item["method"] != "CONNECT":
            assert exchange.host == item["host"]


@pytest.mark.parametrize("name", [*VALID, *INVALID])
def test_gunicorns_requests_cut_at_every_byte(name: str) -> None:
    data = base64.b64decode(vectors("gunicorn")[name]["bytes"])
    whole = _run([data], [])
    for cut in range(1, min(len(data), 1500)):
        parts = _run([data[:cut], data[cut:]], [])
        if name in VALID:
            assert [framing(item) for item in parts] == [framing(item) for item in whole], cut


@pytest.mark.parametrize("name", BEHIND_PROXY_HEADER)
def test_gunicorns_requests_behind_a_proxy_header(name: str) -> None:
    vector = vectors("gunicorn")[name]
    data = base64.b64decode(vector["bytes"])
    whole = detecting.Conversation(Role.SERVER)
    call = Call(Operation.READ, 0, 1, 2, len(data))
    whole.receive(Direction.INGRESS, call, data, 0)
    whole.close(3)
    said = [(item.method, item.path, item.request_body_bytes) for item in whole.exchanges]
    assert said == [(item["method"], _path(item["target"], ""), item["body"]) for item in vector["expected"]]
    assert whole.exchanges[0].calls == [call]


@pytest.mark.parametrize("name", vectors("httptools"))
def test_httptools_messages_cut_at_every_byte(name: str) -> None:
    vector = vectors("httptools")[name]
    request, response = base64.b64decode(vector["request"]), base64.b64decode(vector["response"])
    expected = [
        (
            item["method"],
            _path(item["target"], item["method"]),
            item["host"],
            item["status"],
            item["body"],
            item["response_body"],
        )
        for item in vector["expected"]
    ]
    for cut in range(1, max(len(request), len(response))):
        exchanges = _run(_parts(request, cut), _parts(response, cut))
        said = [(e.method, e.path, e.host, e.status, e.request_body_bytes, e.response_body_bytes) for e in exchanges]
        assert said == expected, cut


def _parts(data: bytes, cut: int) -> list[bytes]:
    return [part for part in (data[:cut], data[cut:]) if part]
