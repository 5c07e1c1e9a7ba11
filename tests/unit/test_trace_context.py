# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.model import TraceContext
from rover_plugin.access_log.protocols.trace_context import HEADER_NAMES, extract


def _sw8(trace: bytes = b"trace", segment: bytes = b"segment", span: bytes = b"3") -> bytes:
    names = (b"service", b"instance", b"/endpoint", b"10.0.0.1:80")
    return b"-".join([b"1", b64encode(trace), b64encode(segment), span, *map(b64encode, names)])


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SKYWALKING = TraceContext("skywalking", "trace", "segment", "3")
ZIPKIN = TraceContext("zipkin", TRACE, "", SPAN)
B3 = f"{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90".encode()
B3_MULTIPLE = {b"x-b3-traceid": TRACE.encode(), b"x-b3-spanid": SPAN.encode()}
TRACEPARENT = f"00-{TRACE}-{SPAN}-01".encode()


def test_sw8_is_a_skywalking_context() -> None:
    assert extract({b"sw8": _sw8()}.get) == SKYWALKING


@pytest.mark.parametrize(
    "headers",
    [
        {b"b3": B3},
        {b"b3": f"{TRACE}-{SPAN}".encode()},
        {b"b3": f"{TRACE}-{SPAN}-d".encode()},
        B3_MULTIPLE,
        {b"traceparent": TRACEPARENT},
        {b"traceparent": f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be".encode()},
    ],
)
def test_b3_and_traceparent_are_zipkin_contexts(headers: dict[bytes, bytes]) -> None:
    assert extract(headers.get) == ZIPKIN


def test_a_64_bit_trace_id_is_taken_as_it_is() -> None:
    assert extract({b"b3": f"{SPAN}-{SPAN}".encode()}.get) == TraceContext("zipkin", SPAN, "", SPAN)


BAD = [
    (b"sw8", b""),
    (b"sw8", b"1-notbase64!-a-3-b-c-d-e"),
    (b"sw8", _sw8().replace(b"-", b"_", 1)),
    (b"sw8", _sw8(span=b"x")),
    (b"sw8", _sw8(trace=b"\xff\xfe")),
    (b"sw8", b"-".join(_sw8().split(b"-")[:7])),
    (b"sw8", _sw8().replace(b64encode(b"segment"), b"c2VnbWVudA")),
    (b"b3", b"0"),
    (b"b3", b"d"),
    (b"b3", b"xyz-" + SPAN.encode()),
    (b"b3", TRACE.encode()),
    (b"traceparent", TRACEPARENT.replace(b"00-", b"ff-", 1)),
    (b"traceparent", f"00-{'0' * 32}-{SPAN}-01".encode()),
    (b"traceparent", f"00-{TRACE}-{'0' * 16}-01".encode()),
    (b"traceparent", TRACEPARENT + b"-more"),
    (b"traceparent", TRACEPARENT.upper()),
    (b"x-b3-traceid", TRACE.encode()),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_malformed_header_is_no_context(name: bytes, value: bytes) -> None:
    assert extract({name: value}.get) is None


@pytest.mark.parametrize(("name", "value"), [bad for bad in BAD if bad[0] != b"traceparent"])
def test_a_malformed_header_does_not_hide_the_next(name: bytes, value: bytes) -> None:
    assert extract({b"traceparent": TRACEPARENT, name: value}.get) == ZIPKIN


def test_the_first_valid_one_in_order_wins() -> None:
    other = f"{'a' * 32}-{'b' * 16}".encode()
    headers = {b"sw8": _sw8(), b"b3": other, **B3_MULTIPLE, b"traceparent": TRACEPARENT}
    assert extract(headers.get) == SKYWALKING
    del headers[b"sw8"]
    assert extract(headers.get) == TraceContext("zipkin", "a" * 32, "", "b" * 16)


@given(
    st.dictionaries(st.sampled_from(HEADER_NAMES), st.binary(max_size=80) | st.sampled_from([B3, TRACEPARENT, _sw8()]))
)
def test_no_value_raises(headers: dict[bytes, bytes]) -> None:
    extract(headers.get)
