"""The way to rank 0 of a shard group: a Unix socket of this machine, or TCP with certificates on both sides."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio


class ShardTlsError(Exception):
    """The files of a `ShardTls` cannot be used. The message says why."""


@dataclass(frozen=True, slots=True)
class ShardTls:
    """PEM files: the certificate chain that the router shows, its key, and the authorities of the shards' ones."""

    certificate: Path
    key: Path
    authority: Path

    def check(self) -> None:
        """Raise ShardTlsError unless the files fit one another."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            context.load_verify_locations(self.authority)
        except OSError as error:  # of a file; ssl.SSLError is one too
            raise ShardTlsError(
                f"{self.certificate}, {self.key} and {self.authority} are no certificate, its key and an authority: "
                f"{error} (--shard-tls-cert, --shard-tls-key, --shard-tls-ca)"
            ) from None
        except _KeyIsLocked:
            raise ShardTlsError(f"{self.key} is encrypted, wanted a key without a password (--shard-tls-key)") from None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError when one of them is gone."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.authority.read_bytes(),
            private_key=self.key.read_bytes(),
            certificate_chain=self.certificate.read_bytes(),
        )


@dataclass(frozen=True, slots=True)
class ShardLink:
    """Where rank 0 listens: the path of a socket, or with `tls` a TCP address `host:port`.

    The certificate of a shard at a TCP address must name that host.
    """

    place: str
    tls: ShardTls | None = None

    def open(self, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        """Return a new channel. Files of TLS are read for each channel. Raises OSError when one of them is gone."""
        if self.tls is None:
            return grpc.aio.insecure_channel(f"unix:{self.place}", options)
        return grpc.aio.secure_channel(self.place, self.tls.credentials(), options)


class _KeyIsLocked(Exception):
    """The key wants a password, for which OpenSSL would ask on the terminal."""


def _no_password() -> str:
    raise _KeyIsLocked
