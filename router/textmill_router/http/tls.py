"""TLS: the certificate of the server, which may change while the server runs."""

import ssl


class TlsFilesError(Exception):
    """The certificate and the key cannot be used. The message says why."""


class TlsFiles:
    """Certificate chain and private key, both PEM, and the context that shows them to clients. Raises TlsFilesError.

    TLS 1.2 is the oldest version that the context takes.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate = certificate
        self._key = key
        self.context = self._load()

    @property
    def paths(self) -> tuple[str, str]:
        """The files of certificate and key."""
        return self._certificate, self._key

    def reload(self) -> None:
        """Show new clients the files as they are now. Raises TlsFilesError, and then shows the files before."""
        self._load()  # a pair that does not fit would leave the live context with a half of it
        self.context.load_cert_chain(self._certificate, self._key, password=_no_password)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except OSError as error:  # of a file; ssl.SSLError is one too
            raise TlsFilesError(
                f"{self._certificate} and {self._key} are no certificate and its key: {error}"
            ) from None
        except _KeyIsLocked:
            raise TlsFilesError(f"{self._key} is encrypted, wanted a key without a password") from None
        return context


class _KeyIsLocked(Exception):
    """The key wants a password, for which OpenSSL would ask on the terminal."""


def _no_password() -> str:
    raise _KeyIsLocked
