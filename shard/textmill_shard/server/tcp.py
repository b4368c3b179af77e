"""The TCP port of rank 0, where both sides show certificates (mutual TLS). A port without TLS does not exist."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)

# A stranger that connects and says nothing is cut off after so long.
HANDSHAKE_TIMEOUT_MS = 10_000


class TlsFilesError(Exception):
    """The files of `TlsFiles` cannot be used. The message says why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate chain of this side, its key, and the authorities that must have signed the peer's."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """Where to listen, as `host:port`, and with which certificates."""

    address: str
    tls: TlsFiles


def open_tcp_port(server: grpc.Server, place: TcpPlace) -> None:
    """Let the server listen at the place too. Call before `server.start`.

    Raises TlsFilesError, and OSError when the address cannot be bound. A client without a certificate of the authority
    gets no further than the handshake. Files that change count from the next handshake on.
    """
    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(_read(place.tls)), _follow(place.tls), require_client_authentication=True
    )
    try:
        bound = server.add_secure_port(place.address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {place.address} (--shard-address): {error}") from error
    if not bound:
        raise OSError(f"cannot listen on {place.address} (--shard-address)")


def _follow(tls: TlsFiles) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """Return the function that gRPC asks before each handshake. None leaves everything as it is."""
    shown = _read(tls)

    def ask() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            found = _read(tls)
        except TlsFilesError as error:
            log.warning("certificates stay as they were", extra={"reason": str(error)})
            return None
        if found == shown:
            return None
        shown = found
        log.info("certificates read again", extra={"certificate": str(tls.certificate)})
        return _configuration(shown)

    return ask


def _read(tls: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """Return certificate, key and authorities. Raises TlsFilesError for files that do not fit one another."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        context.load_verify_locations(tls.authority)
        return tls.certificate.read_bytes(), tls.key.read_bytes(), tls.authority.read_bytes()
    except OSError as error:  # of a file; ssl.SSLError is one too
        raise TlsFilesError(
            f"{tls.certificate}, {tls.key} and {tls.authority} are no certificate, its key and an authority: {error} "
            "(--shard-tls-cert, --shard-tls-key, --shard-tls-ca)"
        ) from None
    except _KeyIsLocked:
        raise TlsFilesError(f"{tls.key} is encrypted, wanted a key without a password (--shard-tls-key)") from None


def _configuration(files: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    certificate, key, authority = files
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


class _KeyIsLocked(Exception):
    """The key wants a password, for which OpenSSL would ask on the terminal."""


def _no_password() -> str:
    raise _KeyIsLocked
