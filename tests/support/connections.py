# SPDX-License-Identifier: Apache-2.0
"""Connections, exchanges and their fragments as outputs get them, made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rover_plugin.access_log.encoders.json import JsonEncoder
from rover_plugin.access_log.model import Call, Endpoint, Exchange, Operation, ResolvedConnection, Role
from rover_plugin.capture.records import CallClass
from rover_plugin.discovery.model import Entity

SHOP = Entity("OS_LINUX", "shop", "web-1", "nginx")
BUYER = Entity("OS_LINUX", "buyer", "web-1", "curl")

SERVED = ResolvedConnection(
    7,
    812,
    Endpoint("127.0.0.1", 80, SHOP, 812),
    Endpoint("127.0.0.1", 51342, BUYER, 901),
    Role.SERVER,
    tls=False,
)


def exchange(**changes: Any) -> Exchange:
    """`GET /index.html` answered 200 in 1.2 ms, by a read and a write; with `changes`."""
    return replace(
        Exchange(
            1,
            "GET",
            "/index.html",
            "shop.example",
            200,
            request_header_bytes=80,
            response_header_bytes=230,
            response_body_bytes=612,
            start_ns=1_000_000_000,
            end_ns=1_001_200_000,
            calls=[
                Call(Operation.READ, CallClass.RECVFROM, 900_000_000, 1_000_000_000, 80),
                Call(Operation.WRITE, CallClass.WRITEV, 1_001_000_000, 1_001_200_000, 842),
            ],
        ),
        **changes,
    )


def encoder(offset_ns: int = 0) -> JsonEncoder:
    """A JSON encoder whose wall clock is CLOCK_MONOTONIC plus `offset_ns`."""
    made = JsonEncoder()
    made.set_clock(offset_ns)
    return made
