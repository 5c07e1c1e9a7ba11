# SPDX-License-Identifier: Apache-2.0
"""Calls to grpcio's own server: what arrives, and what each failure says."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from rover_plugin.backend.caller import Caller, Patience
from rover_plugin.backend.grpc_over_h2 import frame_message
from rover_plugin.backend.health import LinkState
from rover_plugin.errors import BackendError, CallError
from tests.support.backend import ACCESS_LOG_COLLECT, started_core
from tests.support.oap import OapDouble, ServerTls
from tests.support.oap_certificates import Authority
from tests.support.oap_messages import connection, http, message, node
from tests.support.oap_process import OapProcess

if TYPE_CHECKING:
    from pathlib import Path

    from rover_plugin.backend.module import CoreModule

FIRST = frame_message(message("read", node=node(), connection=connection(), protocol=http()).SerializeToString())
NEXT = frame_message(message("read", connection=connection(), protocol=http()).SerializeToString())


def body(messages: int) -> list[bytes]:
    return [FIRST, NEXT * (messages - 1)]


def caller_of(core: CoreModule) -> Caller:
    return core.open_caller("access_log")


def send(caller: Caller, parts: list[bytes], timeout_s: float = 20, **options: bool) -> int:
    return caller.stream(ACCESS_LOG_COLLECT, parts, Patience(quiet=timeout_s, total=3 * timeout_s), **options)


def failure(caller: Caller, parts: list[bytes], timeout_s: float = 20, **options: bool) -> CallError:
    with pytest.raises(CallError) as caught:
        send(caller, parts, timeout_s, **options)
    return caught.value


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_calls_share_one_connection_and_every_message_arrives_in_order() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        caller = caller_of(core)
        assert core.health.state is LinkState.IDLE
        send(caller, body(3), 20)
        first = caller._connection
        send(caller, body(5), 20)
        assert caller._connection is first
        assert oap.messages_per_stream == [3, 5]
        assert oap.clean
        assert core.health.state is LinkState.CONNECTED


@pytest.mark.parametrize("window", [None, 1024, 8 << 20])
def test_bodies_beyond_any_window_arrive_whole(window: int | None) -> None:
    with OapDouble(keep="counts", window=window) as oap, started_core(oap.address) as core:
        send(caller_of(core), body(20_000), 60)
        assert oap.tally.messages == 20_000
        assert oap.tally.protocol == 20_000


def test_parts_may_be_cut_anywhere() -> None:
    whole = FIRST + NEXT * 99
    with OapDouble() as oap, started_core(oap.address) as core:
        send(caller_of(core), [memoryview(whole)[at : at + 7] for at in range(0, len(whole), 7)], 20)
        assert oap.messages_per_stream == [100]
        assert oap.clean


def test_token_is_sent_and_its_refusal_is_told_as_not_begun() -> None:
    with OapDouble(token="s3cret") as oap:
        with started_core(oap.address, core__backend__authentication="s3cret") as core:
            send(caller_of(core), body(1), 20)
        with started_core(oap.address, core__backend__authentication="wrong") as core:
            error = failure(caller_of(core), body(1000))
            assert (error.status, error.body_bytes_sent) == ("PERMISSION_DENIED", 0)
            assert core.health.state is LinkState.DISCONNECTED
            assert core.health.reason.startswith("PERMISSION_DENIED")
        assert oap.tally.messages == 1


def test_unimplemented_is_told_as_not_begun() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        oap.faults.unimplemented = True
        error = failure(caller_of(core), body(1000))
        assert (error.status, error.body_bytes_sent) == ("UNIMPLEMENTED", 0)


def test_watermark_met_with_caution_costs_nothing() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        oap.faults.watermark = True
        caller = caller_of(core)
        assert failure(caller, body(10)).status == "RESOURCE_EXHAUSTED"
        error = failure(caller, body(10), cautious=True)
        assert (error.status, error.body_bytes_sent) == ("RESOURCE_EXHAUSTED", 0)
        oap.faults.watermark = False
        send(caller, body(10), 20, cautious=True)
        assert oap.messages_per_stream == [10]


def test_stream_ended_midway_tells_how_much_had_left() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        oap.faults.reset_after = 5
        error = failure(caller_of(core), body(10))
        assert error.status == "UNAVAILABLE"
        assert error.body_bytes_sent > 0
        assert oap.tally.messages == 5


def test_server_that_stops_reading_meets_the_deadline_with_part_of_the_body_unsent() -> None:
    whole = body(60_000)
    with OapDouble(keep="counts", window=65536) as oap, started_core(oap.address) as core:
        oap.faults.may_read.clear()
        caller = caller_of(core)
        error = failure(caller, whole, timeout_s=1)
        assert error.status == "DEADLINE_EXCEEDED"
        assert 0 < error.body_bytes_sent < sum(map(len, whole))
        oap.faults.may_read.set()
        send(caller, body(3), 20)


def test_reply_that_does_not_come_meets_the_deadline_with_the_whole_body_sent() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        oap.faults.may_reply.clear()
        error = failure(caller_of(core), body(3), timeout_s=1)
        assert (error.status, error.body_bytes_sent) == ("DEADLINE_EXCEEDED", len(b"".join(body(3))))


def test_not_after_cuts_a_running_call_short() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        oap.faults.may_reply.clear()
        caller = caller_of(core)
        sender = threading.Thread(target=failure, args=(caller, body(3), 1000))
        sender.start()
        oap.wait_for(lambda: oap.tally.messages == 3)
        caller.not_after = 0
        sender.join(20)
        assert not sender.is_alive()


def test_nobody_listening_is_unavailable_with_nothing_sent_and_names_the_address() -> None:
    address = closed_port()
    with started_core(address) as core:
        error = failure(caller_of(core), body(3))
        assert (error.status, error.body_bytes_sent) == ("UNAVAILABLE", 0)
        assert address in str(error)
        assert core.health.state is LinkState.DISCONNECTED


def test_next_address_is_tried_and_kept() -> None:
    with OapDouble() as oap, started_core(f"{closed_port()},{oap.address}") as core:
        caller = caller_of(core)
        send(caller, body(3), 20)
        assert core.health.address == oap.address
        caller.close()
        send(caller, body(3), 20)
        assert oap.messages_per_stream == [3, 3]


def test_address_that_refuses_gives_way_to_the_next() -> None:
    with OapDouble() as full, OapDouble() as oap, started_core(f"{full.address},{oap.address}") as core:
        full.faults.watermark = True
        caller = caller_of(core)
        failure(caller, body(1))
        send(caller, body(1), 20)
        assert oap.tally.messages == 1


def test_killed_and_restarted_backend_is_found_again(tmp_path: Path) -> None:
    with OapProcess(tmp_path) as oap, started_core(oap.address) as core:
        caller = caller_of(core)
        send(caller, body(2), 20)
        oap.kill()
        error = failure(caller, body(2))
        assert (error.status, error.body_bytes_sent) == ("UNAVAILABLE", 0)
        oap.start()
        send(caller, body(2), 20)
        assert oap.tally.messages == 4


def test_backend_that_goes_away_between_calls_is_noticed() -> None:
    with OapDouble() as oap, started_core(oap.address) as core:
        caller = caller_of(core)
        caller.watch()
        assert core.health.state is LinkState.CONNECTED
        oap.stop()
        with pytest.raises(CallError):
            caller.watch()
        assert core.health.state is LinkState.DISCONNECTED


def answering(reply: bytes) -> tuple[socket.socket, str]:
    """A server that says `reply` to the first who comes, and reads on until they leave."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(reply)
            while peer.recv(65536):
                pass

    threading.Thread(target=serve, daemon=True).start()
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"]
)
def test_server_that_speaks_no_http2_is_told_so(reply: bytes) -> None:
    listener, address = answering(reply)
    with listener, started_core(address) as core:
        error = failure(caller_of(core), body(1))
        assert error.status == "UNAVAILABLE"
        assert "HTTP/2" in str(error)


# -- TLS --


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def written(folder: Path, **files: bytes) -> dict[str, Path]:
    paths = {name: folder / f"{name}.pem" for name in files}
    for name, content in files.items():
        paths[name].write_bytes(content)
    return paths


def test_tls_with_the_right_authority_works_and_with_the_system_s_does_not(
    authority: Authority, tmp_path: Path
) -> None:
    server = authority.issue("127.0.0.1", "localhost")
    files = written(tmp_path, ca=authority.pem)
    with OapDouble(tls=ServerTls(server.certificate, server.key)) as oap:
        with started_core(
            oap.address, core__backend__enable_TLS="true", core__backend__ca_pem_path=files["ca"]
        ) as core:
            send(caller_of(core), body(20_000), 60)
            assert oap.tally.messages == 20_000
        with started_core(oap.address, core__backend__enable_TLS="true") as core:
            error = failure(caller_of(core), body(1))
            assert (error.status, error.body_bytes_sent) == ("UNAUTHENTICATED", 0)


def test_mutual_tls_shows_the_certificate_and_lacking_it_is_unauthenticated(
    authority: Authority, tmp_path: Path
) -> None:
    server, client = authority.issue("127.0.0.1"), authority.issue("agent")
    files = written(tmp_path, ca=authority.pem, pem=client.certificate, key=client.key)
    tls = {"core__backend__enable_TLS": "true", "core__backend__ca_pem_path": files["ca"]}
    both = {"core__backend__client_pem_path": files["pem"], "core__backend__client_key_path": files["key"]}
    with OapDouble(tls=ServerTls(server.certificate, server.key, authority.pem)) as oap:
        with started_core(oap.address, **tls, **both) as core:
            send(caller_of(core), body(3), 20)
        with started_core(oap.address, **tls) as core:
            error = failure(caller_of(core), body(3))
            assert (error.status, error.body_bytes_sent) == ("UNAUTHENTICATED", 0)
        assert oap.tally.messages == 3


def test_skip_verify_takes_any_certificate_but_only_the_same_one_later(authority: Authority, tmp_path: Path) -> None:
    del tmp_path
    one, other = authority.issue("elsewhere.example"), authority.issue("forged.example")
    with OapDouble(tls=ServerTls(one.certificate, one.key)) as oap:
        port = oap.port
        settings = {"core__backend__enable_TLS": "true", "core__backend__insecure_skip_verify": "true"}
        with started_core(oap.address, **settings) as core:
            caller = caller_of(core)
            send(caller, body(1), 20)
            oap.stop()
            with OapDouble(port=port, tls=ServerTls(other.certificate, other.key)) as second:
                error = failure(caller, body(1))
                assert error.status == "UNAUTHENTICATED"
                assert "another certificate" in str(error)
                assert second.tally.messages == 0


def test_unusable_certificate_files_stop_the_start_with_the_key_s_name(tmp_path: Path) -> None:
    files = written(tmp_path, ca=b"no PEM")
    with (
        pytest.raises(BackendError, match="ca_pem_path"),
        started_core("localhost:1", core__backend__enable_TLS="true", core__backend__ca_pem_path=files["ca"]),
    ):
        pass
    with (
        pytest.raises(BackendError, match="both its files"),
        started_core("localhost:1", core__backend__enable_TLS="true", core__backend__client_pem_path=files["ca"]),
    ):
        pass
