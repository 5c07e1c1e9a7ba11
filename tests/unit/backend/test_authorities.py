# SPDX-License-Identifier: Apache-2.0
"""Which certificates the backend may show: those that grpcio takes too, whatever this Python takes by default."""

from __future__ import annotations

import queue
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rover_plugin.backend.security import Security, connect
from rover_plugin.errors import CallError
from tests.support.oap_certificates import builder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IS_CA: Final = (x509.BasicConstraints(ca=True, path_length=None), True)
LOCALHOST: Final = (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)


@dataclass(frozen=True)
class Made:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        no = serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no)


def make(name: str, *extensions: tuple[x509.ExtensionType, bool], by: Made | None = None, ids: bool = True) -> Made:
    """A certificate with extensions (and whether they are critical), signed by itself or `by`; `ids` adds key ids."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = by or Made(None, key)
    made = builder(subject, by.certificate.subject if by else subject, key)
    for extension, critical in extensions:
        made = made.add_extension(extension, critical)
    if ids:
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
        made = made.add_extension(issuer, critical=False)
    return Made(made.sign(signer.key, hashes.SHA256()), key)


def usage(*, sign: bool) -> tuple[x509.ExtensionType, bool]:
    flags = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    return (
        x509.KeyUsage(digital_signature=True, key_cert_sign=sign, encipher_only=False, decipher_only=False, **flags),
        True,
    )


def as_openssl_makes_it() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA)
    return root.pem, [make("localhost", LOCALHOST, by=root)]


def with_key_usage() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA, usage(sign=True))
    return root.pem, [make("localhost", LOCALHOST, usage(sign=False), by=root)]


def without_key_identifiers() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA, ids=False)
    return root.pem, [make("localhost", LOCALHOST, by=root, ids=False)]


def without_critical_constraints() -> tuple[bytes, list[Made]]:
    root = make("root", (IS_CA[0], False))
    return root.pem, [make("localhost", LOCALHOST, by=root)]


def with_an_intermediate() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA)
    between = make("between", IS_CA, by=root)
    return root.pem, [make("localhost", LOCALHOST, by=between), between]


def with_only_the_intermediate_trusted() -> tuple[bytes, list[Made]]:
    between = make("between", IS_CA, by=make("root", IS_CA))
    return between.pem, [make("localhost", LOCALHOST, by=between)]


def self_signed() -> tuple[bytes, list[Made]]:
    itself = make("localhost", LOCALHOST, IS_CA)
    return itself.pem, [itself]


def of_another_authority() -> tuple[bytes, list[Made]]:
    return make("root", IS_CA).pem, [make("localhost", LOCALHOST, by=make("root", IS_CA))]


def of_another_name() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA)
    return root.pem, [make("elsewhere", (x509.SubjectAlternativeName([x509.DNSName("elsewhere")]), False), by=root)]


def of_an_authority_that_may_not_sign() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA, usage(sign=False))
    return root.pem, [make("localhost", LOCALHOST, by=root)]


def for_clients_only() -> tuple[bytes, list[Made]]:
    root = make("root", IS_CA)
    clients = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
    return root.pem, [make("localhost", LOCALHOST, clients, by=root)]


TAKEN = (
    as_openssl_makes_it,
    with_key_usage,
    without_key_identifiers,
    without_critical_constraints,
    with_an_intermediate,
    with_only_the_intermediate_trusted,
    self_signed,
)
REFUSED = (of_another_authority, of_another_name, of_an_authority_that_may_not_sign, for_clients_only)


@pytest.fixture(params=["strict", "lenient"], autouse=True)
def _defaults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python judges from 3.13 on, and as it did before."""
    real, strict = ssl.create_default_context, ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN

    def create(**arguments: str | None) -> ssl.SSLContext:
        context = real(**arguments)
        lenient = context.verify_flags & ~strict
        context.verify_flags = lenient | strict if request.param == "strict" else lenient
        return context

    monkeypatch.setattr(ssl, "create_default_context", create)


def we_take_it(address: str, roots: Path) -> bool:
    try:
        Security(tls=True, ca_path=roots).wrap(connect(address, 20), address).close()
    except CallError:
        return False
    return True


def grpcio_takes_it(address: str, roots: bytes) -> bool:
    states = queue.Queue[grpc.ChannelConnectivity]()
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(roots)) as channel:
        channel.subscribe(states.put, try_to_connect=True)
        while (state := states.get(timeout=20)) not in {
            grpc.ChannelConnectivity.READY,
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
        }:
            pass
    return state is grpc.ChannelConnectivity.READY


@pytest.mark.parametrize(
    ("made", "taken"),
    [(made, True) for made in TAKEN] + [(made, False) for made in REFUSED],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_we_take_what_grpcio_takes(made: Callable[[], tuple[bytes, list[Made]]], taken: bool, tmp_path: Path) -> None:
    roots, chain = made()
    server = grpc.server(ThreadPoolExecutor(2))
    shown = b"".join(one.pem for one in chain)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(chain[0].key_pem, shown)]))
    server.start()
    (tmp_path / "roots.pem").write_bytes(roots)
    try:
        assert we_take_it(f"localhost:{port}", tmp_path / "roots.pem") is taken
        assert grpcio_takes_it(f"localhost:{port}", roots) is taken
    finally:
        server.stop(None)
