# SPDX-License-Identifier: Apache-2.0
"""A client of `h2` whose bytes are re-framed (padding, priorities, CONTINUATION) and sent a few at a time."""

from __future__ import annotations

import socket

import h2.config
import h2.connection
import h2.events

from tests.support.http2_conversation import post, reframe, seeded


def rough_requests(port: int, count: int, cut: int) -> list[int]:
    """Asks `count` times at once, sends `cut` bytes a call; returns the statuses by stream."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            stream_id = connection.get_next_available_stream_id()
            connection.send_headers(stream_id, post(f"/rough/{number}?q", "rough.test", x_number=str(number)))
            connection.send_data(stream_id, bytes(number), end_stream=True)
        written = reframe(connection.data_to_send(), seeded(cut))
        for at in range(0, len(written), cut):
            client.sendall(written[at : at + cut])
        statuses: dict[int, int] = {}
        open_streams = count
        while open_streams:
            data = client.recv(65536)
            assert data, "the server closed"
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses[event.stream_id] = int(dict(event.headers)[":status"])
                elif isinstance(event, h2.events.StreamEnded):
                    open_streams -= 1
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event
            client.sendall(connection.data_to_send())
    return [statuses[stream_id] for stream_id in sorted(statuses)]
