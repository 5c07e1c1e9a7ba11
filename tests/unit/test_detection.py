# SPDX-License-Identifier: Apache-2.0
"""What a connection speaks is found in its bytes; nothing else is ever taken for HTTP, and then costs nothing more."""

from __future__ import annotations

import ssl
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Call, Direction, Operation, ProtocolName, Role
from rover_plugin.access_log.protocols.detect import Verdict, classify
from tests.support import look_alikes
from tests.support.oap_certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.support.look_alikes import Stream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CAPTURE_LIMIT = 16_384


def _hold(stream: Iterable[tuple[bool, bytes]], role: Role, *, client: bool = False) -> Conversation:
    """A conversation as one end of it sees it; each item is one call, of which the first bytes are copied."""
    conversation = Conversation(role)
    calls = 0
    for number, (from_client, data) in enumerate(stream):
        direction = Direction.EGRESS if from_client == client else Direction.INGRESS
        operation = Operation.WRITE if direction is Direction.EGRESS else Operation.READ
        call = Call(operation, 0, number * 10, number * 10 + 5, len(data))
        unneeded = conversation.unneeded(direction)
        seen = b"" if unneeded < 0 else data[:CAPTURE_LIMIT]
        conversation.receive(direction, call, seen, len(data) - len(seen))
        calls += 1
    conversation.close(calls * 10)
    assert len(conversation.loose) + sum(len(item.calls) for item in conversation.exchanges) == calls
    return conversation


def _cut(stream: Stream, chance: Random) -> Stream:
    """Other pieces; none begins with the HTTP that some values are, which would be proof by any measure."""
    cut: Stream = []
    for from_client, data in stream:
        at = 0
        while at < len(data):
            size = chance.choice([1, 3, 4, 5, 9, 24, 100, 1000])
            if b"HTTP/1.1" in data[at + size : at + size + 16]:
                size += 16
            cut.append((from_client, data[at : at + size]))
            at += size
    return cut


ALL = [(name, number) for name in look_alikes.names() for number in range(len(look_alikes.load(name)))]


def test_all_look_alikes_are_there() -> None:
    assert look_alikes.names() == ["memcached", "mongodb", "mysql", "postgres", "redis", "smtp", "ssh"]


@pytest.mark.parametrize(("name", "number"), ALL)
def test_a_recorded_look_alike_is_tcp(name: str, number: int) -> None:
    stream = look_alikes.load(name)[number]
    for client, role in ((False, Role.SERVER), (True, Role.CLIENT)):
        conversation = _hold(stream, role, client=client)
        assert conversation.protocol is ProtocolName.TCP
        assert conversation.exchanges == []
        assert conversation.errors == {}
        if all(sum(len(data) for side, data in stream if side is way) >= 64 for way in (True, False)):
            assert conversation.deaf, "still copies what is of no use"


@pytest.mark.parametrize(("name", "number"), ALL)
def test_a_recorded_look_alike_joined_late_is_tcp(name: str, number: int) -> None:
    stream = look_alikes.load(name)[number]
    for start in range(len(stream)):
        for client in (False, True):
            conversation = _hold(stream[start:], Role.UNKNOWN, client=client)
            assert conversation.protocol is ProtocolName.TCP, start
            assert conversation.exchanges == []


@pytest.mark.parametrize(("name", "number"), ALL)
def test_a_recorded_look_alike_in_other_pieces_is_tcp(name: str, number: int) -> None:
    stream = look_alikes.load(name)[number]
    for seed in range(100):
        conversation = _hold(_cut(stream, Random(seed)), Role.SERVER)
        assert conversation.protocol is ProtocolName.TCP, seed
        assert conversation.exchanges == []


# Text protocols with HTTP's manners; each line is one call, the client's first.
TEXTS = {
    "rtsp": [b"OPTIONS rtsp://example.com/media RTSP/1.0\r\nCSeq: 1\r\n\r\n", b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n"],
    "sip": [b"INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/TCP a\r\n\r\n", b"SIP/2.0 180 Ringing\r\n\r\n"],
    "icap": [b"OPTIONS icap://a/b ICAP/1.0\r\nHost: a\r\n\r\n", b"ICAP/1.0 200 OK\r\nMethods: REQMOD\r\n\r\n"],
    "stomp": [b"CONNECT\naccept-version:1.2\nhost:a\n\n\0", b"CONNECTED\nversion:1.2\n\n\0"],
    "nats": [b"PUB subject 11\r\nHello World\r\n", b'INFO {"server_id":"x","proto":1}\r\n'],
    "imap": [b"a1 LOGIN user password\r\n", b"* OK [CAPABILITY IMAP4rev1] ready\r\na1 OK logged in\r\n"],
    "pop3": [b"RETR 1\r\n", b"+OK 120 octets\r\nGET is a word\r\n.\r\n"],
    "ftp": [b"RETR /file HTTP\r\n", b"150 Opening\r\n226 Done\r\n"],
    "shoutcast": [b"SOURCE password\r\n", b"ICY 200 OK\r\nicy-name: radio\r\n\r\n"],
    "http/0.9": [b"GET /index.html\r\n", b"<html>old</html>\r\n"],
    "zookeeper": [b"ruok\n", b"imok\n"],
    "beanstalk": [b"put 0 0 60 5\r\nhello\r\n", b"INSERTED 1\r\n"],
    "syslog": [b"<34>1 2026-01-01T00:00:00Z host app - - - GET / HTTP/1.1\n", b"ack\n"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_protocol_is_tcp(name: str) -> None:
    stream = [(number % 2 == 0, data) for number, data in enumerate(TEXTS[name] * 20)]
    for role in Role:
        conversation = _hold(stream, role)
        assert conversation.protocol is ProtocolName.TCP
        assert conversation.deaf


def _kafka(chance: Random) -> bytes:
    """A request with Kafka's header: size, API key and version, correlation id, client id."""
    body = chance.randrange(64).to_bytes(2) + chance.randrange(12).to_bytes(2) + chance.randrange(1 << 20).to_bytes(4)
    body += b"\x00\x08consumer" + chance.randbytes(chance.randrange(200))
    return len(body).to_bytes(4) + body


def _amqp(chance: Random) -> bytes:
    content = chance.randbytes(chance.randrange(300))
    return bytes((chance.choice([1, 2, 3, 8]),)) + b"\0\x01" + len(content).to_bytes(4) + content + b"\xce"


def _framed(chance: Random) -> bytes:
    """A 3-byte length, a small type, flags and an even number: as near to HTTP/2 as a stranger comes."""
    content = chance.randbytes(chance.randrange(120))
    return len(content).to_bytes(3) + bytes((chance.randrange(10), chance.randrange(6))) + bytes(4) + content


@pytest.mark.parametrize("make", [_kafka, _amqp, _framed, lambda chance: chance.randbytes(chance.randrange(1, 600))])
def test_binary_protocols_are_tcp(make: Callable[[Random], bytes]) -> None:
    for seed in range(400):
        chance = Random(seed)
        stream = [(number % 2 == 0, make(chance)) for number in range(40)]
        for role in (Role.SERVER, Role.UNKNOWN):
            conversation = _hold(stream, role)
            assert conversation.protocol in {ProtocolName.TCP, ProtocolName.TLS}
            assert conversation.exchanges == []


def test_random_bytes_are_never_taken_for_http() -> None:
    """False positives: 0 of 150 000, of which half begin like frames or records."""
    chance = Random(1)
    for number in range(150_000):
        data = chance.randbytes(chance.choice([1, 9, 16, 40, 200]))
        if number % 4 == 1 and len(data) > 1:  # one byte would be a whole header block, `:status: 200`
            data = len(data).to_bytes(3) + bytes((chance.randrange(10), chance.randrange(40), 0, 0, 0, 1)) + data
        elif number % 4 == 2:
            data = bytes((chance.randrange(0x14, 0x18), 3, chance.randrange(5))) + data
        found = classify(data, Direction.INGRESS)
        assert not isinstance(found, Verdict) or found.protocol is ProtocolName.TLS, data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [1, 100, 5_000, 40_000])
def test_what_openssl_says_is_tls(version: ssl.TLSVersion, size: int, tmp_path: Path) -> None:
    stream = _tls_stream(version, size, tmp_path)
    for role in (Role.SERVER, Role.CLIENT):
        conversation = _hold(stream, role, client=role is Role.CLIENT)
        assert (conversation.protocol, conversation.tls, conversation.deaf) == (ProtocolName.TLS, True, True)
    for start in range(1, len(stream)):
        joined = _hold(stream[start:], Role.UNKNOWN)
        assert joined.protocol in {ProtocolName.TLS, ProtocolName.TCP}
    for seed in range(30):
        assert _hold(_cut(stream, Random(seed)), Role.UNKNOWN).protocol in {ProtocolName.TLS, ProtocolName.TCP}


def test_what_stands_before_http_does_not_hide_it() -> None:
    request = (True, b"GET /behind HTTP/1.1\r\nHost: h\r\n\r\n")
    preludes = {
        "PROXY protocol 1": [(True, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n")],
        "PROXY protocol 2": [(True, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12))],
        "SOCKS 5": [
            (True, b"\5\1\0"),
            (False, b"\5\0"),
            (True, b"\5\1\0\1\x7f\0\0\1\0\x50"),
            (False, b"\5" + bytes(9)),
        ],
        "an empty line": [(True, b"\r\n")],
    }
    for name, prelude in preludes.items():
        for client, role in ((False, Role.SERVER), (True, Role.CLIENT)):
            conversation = _hold([*prelude, request, (False, OK)], role, client=client)
            assert [(item.path, item.status) for item in conversation.exchanges] == [("/behind", 200)], name


def test_http_joined_in_the_middle_of_a_long_message_is_found_at_the_next() -> None:
    middle = [(False, b"\xff\xd8 part of a picture" * 50)] * 500
    exchange = [(True, b"GET /next HTTP/1.1\r\n\r\n"), (False, OK)]
    conversation = _hold([*middle, *exchange], Role.UNKNOWN)
    assert conversation.protocol is ProtocolName.HTTP1
    assert [(item.path, item.status) for item in conversation.exchanges] == [("/next", None), (None, 200)]


def test_a_stranger_met_midway_is_not_listened_to_for_ever() -> None:
    turns = [(number % 2 == 0, b"neither this nor that\n") for number in range(40)]
    assert _hold(turns, Role.UNKNOWN).deaf
    assert _hold([(True, b"only one speaks")] * 2000, Role.UNKNOWN).deaf


def _tls_stream(version: ssl.TLSVersion, size: int, folder: Path) -> Stream:
    """A handshake and some content, both ways, in memory."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = Authority().issue("localhost")
    (folder / "pem").write_bytes(issued.certificate + issued.key)
    server_side.load_cert_chain(folder / "pem")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_mode = ssl.CERT_NONE
    server_side.maximum_version = client_side.maximum_version = version
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    client = client_side.wrap_bio(client_in, client_out)
    server = server_side.wrap_bio(server_in, server_out, server_side=True)
    stream: Stream = []

    def carry() -> None:
        for from_client, source, target in ((True, client_out, server_in), (False, server_out, client_in)):
            if data := source.read():
                stream.append((from_client, data))
                target.write(data)

    for _ in range(3):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            carry()
    for _ in range(6):
        for writer, reader, start in ((client, server, b"GET / HTTP/1.1\r\n\r\n"), (server, client, OK)):
            content = start.ljust(size, b"x")
            writer.write(content)
            carry()
            left = len(content)
            while left:
                left -= len(reader.read(left))
    return stream
