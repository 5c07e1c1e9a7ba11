# SPDX-License-Identifier: Apache-2.0
"""TLS, mutual TLS and the token, for both transports (oap-contract E)."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from rover_plugin.errors import BackendError, CallError

if TYPE_CHECKING:
    from rover_plugin.settings import Settings

log = structlog.get_logger(__name__)

_ALPN: Final = "h2"
_FETCH_S: Final = 5.0


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; IPv6 hosts stand in brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Pins:
    """Certificates taken at first sight, by address; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, bytes] = {}

    def check(self, address: str, certificate: bytes) -> None:
        """Pins the first certificate (DER) of an address.

        Raises:
            CallError: UNAUTHENTICATED, the address showed another one before.
        """
        with self._lock:
            pinned = self._seen.setdefault(address, certificate)
            first = pinned is certificate
        if pinned != certificate:
            message = f"{address} shows another certificate than before"
            raise CallError(message, status="UNAUTHENTICATED", hint="if that is right, restart the agent")
        if first:
            fingerprint = hashlib.sha256(certificate).hexdigest()
            log.warning(
                "backend_certificate_not_verified",
                address=address,
                sha256=fingerprint,
                hint="anyone in between can read and forge everything: use core.backend.ca_pem_path instead",
            )


@dataclass(frozen=True, slots=True)
class Security:
    """How to speak to the backend.

    Attributes:
        tls: whether to use TLS at all; the rest but the token is void without.
        ca_path: PEM of the authority to trust; None means the system's.
        certificate_path, key_path: what this agent shows (mutual TLS); both or none.
        skip_verify: take any certificate at first sight, and only that one afterwards.
        token: value of metadata key `authentication`; empty sends none.
        pins: certificates seen, with skip_verify.
    """

    tls: bool = False
    ca_path: Path | None = None
    certificate_path: Path | None = None
    key_path: Path | None = None
    skip_verify: bool = False
    token: str = field(default="", repr=False)
    pins: Pins = field(default_factory=Pins, repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Security:
        """Reads `core.backend.*`.

        Raises:
            BackendError: a PEM file cannot be used, or only one of certificate and key is given.
        """
        certificate, key = (_path(settings, f"core.backend.client_{name}_path") for name in ("pem", "key"))
        security = cls(
            tls=settings.flag("core.backend.enable_TLS"),
            ca_path=_path(settings, "core.backend.ca_pem_path"),
            certificate_path=certificate,
            key_path=key,
            skip_verify=settings.flag("core.backend.insecure_skip_verify"),
            token=settings.text("core.backend.authentication"),
        )
        if security.tls:
            if (certificate is None) != (key is None):
                message = "a client certificate needs both its files"
                raise BackendError(message, hint="set core.backend.client_pem_path and client_key_path, or neither")
            security.context()
        return security

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return (("authentication", self.token),) if self.token else ()

    def context(self) -> ssl.SSLContext:
        """A client context for HTTP/2, read from the files anew so that renewed certificates are taken.

        Raises:
            BackendError: a file is missing, unreadable or no PEM.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.ca_path) if self.ca_path else None)
        except (OSError, ssl.SSLError) as error:
            raise _unusable(self.ca_path, error, "core.backend.ca_pem_path") from error
        context.set_alpn_protocols([_ALPN])
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_path is not None:
            try:
                # An encrypted key would make OpenSSL ask on the terminal.
                context.load_cert_chain(self.certificate_path, self.key_path, password="")
            except (OSError, ssl.SSLError) as error:
                raise _unusable(
                    self.certificate_path, error, "core.backend.client_pem_path, client_key_path"
                ) from error
        return context

    def wrap(self, plain: socket.socket, address: str) -> ssl.SSLSocket:
        """Does the TLS handshake on a connected socket, within its time-out.

        Raises:
            CallError: UNAUTHENTICATED if either side does not trust the other, or the backend has no HTTP/2.
        """
        try:
            secure = self._handshake(plain, address, self.context())
            if self.skip_verify:
                self.pins.check(address, secure.getpeercert(binary_form=True) or b"")
            if secure.selected_alpn_protocol() != _ALPN:
                message = f"{address} does not offer HTTP/2 over TLS"
                raise CallError(message, status="UNAUTHENTICATED")
        except BackendError:
            plain.close()
            raise
        return secure

    def channel(self, address: str, options: list[tuple[str, int | str]]) -> grpc.Channel:
        """A grpcio channel; nothing is connected yet, except that skip_verify fetches the certificate first."""
        if not self.tls:
            return grpc.insecure_channel(address, options)
        roots = self.ca_path.read_bytes() if self.ca_path else None
        if self.skip_verify:
            # grpcio cannot be told not to verify: trust exactly the certificate seen, under a name that it carries.
            pinned = self._fetch(address)
            roots = ssl.DER_cert_to_PEM_cert(pinned).encode()
            options = [*options, ("grpc.ssl_target_name_override", self._name_of(pinned, address))]
        key = self.key_path.read_bytes() if self.key_path else None
        certificate = self.certificate_path.read_bytes() if self.certificate_path else None
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots, key, certificate), options)

    def _fetch(self, address: str) -> bytes:
        """The backend's certificate (DER), pinned."""
        with self._handshake(connect(address, _FETCH_S), address, self.context()) as secure:
            certificate = secure.getpeercert(binary_form=True) or b""
        self.pins.check(address, certificate)
        return certificate

    def _name_of(self, certificate: bytes, address: str) -> str:
        """A name that a certificate is good for. Python tells it only of one it has verified, so it does, by itself."""
        context = self.context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
        with self._handshake(connect(address, _FETCH_S), address, context) as secure:
            names = (secure.getpeercert() or {}).get("subjectAltName", ())
        return next((str(pair[1]) for pair in names if isinstance(pair, tuple)), split_address(address)[0])

    @staticmethod
    def _handshake(plain: socket.socket, address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
        try:
            return context.wrap_socket(plain, server_hostname=split_address(address)[0])
        except OSError as error:
            message = f"TLS with {address} failed ({_reason(error)})"
            raise CallError(message, status="UNAUTHENTICATED") from error


def connect(address: str, timeout_s: float) -> socket.socket:
    """A TCP connection; the time-out stays set.

    Raises:
        CallError: UNAVAILABLE.
    """
    try:
        return socket.create_connection(split_address(address), timeout=timeout_s)
    except OSError as error:
        message = f"cannot connect to {address} ({error.strerror or error})"
        raise CallError(message, status="UNAVAILABLE") from error


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)


def _path(settings: Settings, key: str) -> Path | None:
    text = settings.text(key)
    return Path(text) if text else None


def _unusable(path: Path | None, error: OSError, key: str) -> BackendError:
    message = f"cannot use {path} ({_reason(error)})"
    return CallError(message, status="UNAUTHENTICATED", hint=f"{key} must name readable PEM files")
