# SPDX-License-Identifier: Apache-2.0
"""TLS, mutual TLS and the token (oap-contract E)."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.errors import BackendError, CallError

if TYPE_CHECKING:
    from rover_plugin.settings import Settings

log = structlog.get_logger(__name__)

AUTHENTICATION: Final = "core.backend.authentication"
_ALPN: Final = "h2"
# OpenSSL's names for what a server that speaks no TLS looks like.
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_NO_TLS_HINT: Final = "the port seems to speak no TLS: set core.backend.enable_TLS to false, or name another port"
# Metadata values are header field values: visible ASCII and spaces (grpc/doc/PROTOCOL-HTTP2.md, ASCII-Value).
_TOKEN: Final = re.compile(r"[\x20-\x7e]*", re.ASCII)
_MOST_TOKEN_BYTES: Final = 8192


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
            hint = "if that is right, restart the agent"
            raise CallError(message, status="UNAUTHENTICATED", hint=hint, address=address)
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
            BackendError: a PEM file or the token's file cannot be used, the token is none that HTTP can carry, or only
                one of certificate and key is given.
        """
        certificate, key = (_path(settings, f"core.backend.client_{name}_path") for name in ("pem", "key"))
        security = cls(
            tls=settings.flag("core.backend.enable_TLS"),
            ca_path=_path(settings, "core.backend.ca_pem_path"),
            certificate_path=certificate,
            key_path=key,
            skip_verify=settings.flag("core.backend.insecure_skip_verify"),
            token=_token(settings.text(AUTHENTICATION)),
        )
        if security.token and settings.origin(AUTHENTICATION) == "--set" and settings.text(AUTHENTICATION)[0] != "@":
            log.warning(
                "token_on_command_line", key=AUTHENTICATION, hint="every user can read it: write @/path/to/file"
            )
        if security.token and not security.tls:
            log.warning("token_sent_in_plaintext", key=AUTHENTICATION, hint="set core.backend.enable_TLS to true")
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
        # As clients in Go and grpcio judge, whatever Python's default, which 3.13 has made strict: extensions that RFC
        # 5280 asks for may be missing, as `openssl req -x509` leaves them out, and an intermediate can be trusted.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
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
                raise CallError(message, status="UNAUTHENTICATED", address=address)
        except BackendError:
            plain.close()
            raise
        return secure

    @staticmethod
    def _handshake(plain: socket.socket, address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
        try:
            return context.wrap_socket(plain, server_hostname=split_address(address)[0])
        except OSError as error:
            reason = _reason(error)
            raise CallError(
                f"TLS with {address} failed ({reason})",
                status="UNAUTHENTICATED",
                hint=_NO_TLS_HINT if any(name in reason for name in _NO_TLS) else "",
                address=address,
            ) from error


def connect(address: str, timeout_s: float) -> socket.socket:
    """A TCP connection; the time-out stays set.

    Raises:
        CallError: UNAVAILABLE.
    """
    try:
        return socket.create_connection(split_address(address), timeout=timeout_s)
    except OSError as error:
        message = f"cannot connect to {address} ({error.strerror or error})"
        raise CallError(message, status="UNAVAILABLE", address=address) from error


def _token(text: str) -> str:
    """The token itself, or the first line of the file behind `@`: a command line can be read by every user."""
    if not text.startswith("@"):
        token = text
    else:
        try:
            with Path(text[1:]).open("rb") as file:
                token = file.read(_MOST_TOKEN_BYTES).decode("ascii", "replace").partition("\n")[0].rstrip("\r")
        except OSError as error:
            hint = f"{AUTHENTICATION} must name a readable file after the @"
            raise BackendError(f"cannot read {text[1:]} ({error.strerror})", hint=hint) from error
    if not _TOKEN.fullmatch(token):
        message = f"{AUTHENTICATION}: the token has characters that HTTP cannot carry"
        raise BackendError(message, hint="it must be one line of plain ASCII")
    return token


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
