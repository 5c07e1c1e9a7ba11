# SPDX-License-Identifier: Apache-2.0
"""A request does not stay out of the log for being large: its texts are cut, and every output still takes it."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.encoders.json import JsonEncoder
from rover_plugin.access_log.encoders.protobuf import ProtobufEncoder
from rover_plugin.access_log.model import Exchange
from rover_plugin.access_log.protocols import texts
from rover_plugin.access_log.protocols.http1_head import header, parse_request

LARGEST_HEAD = 64 << 10
# One message of the link to the main process (access_log/link.py).
LARGEST_FRAGMENT = 60_000


@pytest.mark.parametrize("byte", [b"a", b"\xff", b"\xc3\xbc", b'"', b"\x01"], ids=repr)
@pytest.mark.parametrize("size", [4096, 7900, 50_000])
def test_a_path_and_a_host_of_any_bytes_and_size_fit_into_a_message(byte: bytes, size: int) -> None:
    head = b"GET /" + byte * (size // len(byte)) + b" HTTP/1.1\r\nHost: " + byte * (8000 // len(byte)) + b"\r\n\r\n"
    parsed = parse_request(head)
    assert parsed is not None
    method, path, host, _, _ = parsed
    assert path.startswith("/")
    assert len(path.encode(errors="replace")) <= 3 * texts.MAX_PATH
    for encoder in (JsonEncoder(), ProtobufEncoder()):
        fragment, logs = encoder.exchange(Exchange(1, method, path, host, 200, len(head)))
        assert logs == 1
        assert len(fragment) < LARGEST_FRAGMENT
    assert json.loads(b"{" + JsonEncoder().exchange(Exchange(1, method, path, host, 200))[0])["path"] == path


@given(st.lists(st.sampled_from([b"", b"a", b" ", b"b c"]), min_size=1, max_size=6))
def test_folded_lines_are_one_value_with_a_blank_between(lines: list[bytes]) -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"\r\n ".join(lines) + b"\r\n\r\n"
    assert header(head, b"x") == b" ".join(line.strip() for line in lines if line.strip())


def test_what_the_backends_encoder_remembers_of_long_paths_is_bounded_in_bytes() -> None:
    encoder = ProtobufEncoder()
    tracemalloc.start()
    for number in range(4096):
        encoder.exchange(Exchange(1, "GET", f"/{number}/" + "a" * 60_000, "h" * texts.MAX_HOST, 200, 10))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8 << 20
