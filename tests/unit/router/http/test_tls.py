"""The files of TLS: a pair is taken, a half or a foreign pair is not, and a bad change keeps the pair before."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from textmill_router.http.tls import TlsFiles, TlsFilesError

from tests.fakes.certificates import write_pair


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Let both contexts shake hands in memory. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    for _ in range(20):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
    raise AssertionError("the handshake did not end")


def client_of(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    write_pair(folder).configure_trust(context)
    return context


def test_reload_shows_the_new_certificate_and_a_bad_one_keeps_the_old(tmp_path: Path) -> None:
    first = client_of(tmp_path)
    files = TlsFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    shake_hands(files.context, first)
    old_key = (tmp_path / "key.pem").read_text()
    second = client_of(tmp_path)
    files.reload()
    shake_hands(files.context, second)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files.context, first)
    (tmp_path / "key.pem").write_text(old_key)  # does not fit the certificate
    with pytest.raises(TlsFilesError, match="are no certificate and its key"):
        files.reload()
    shake_hands(files.context, second)


def test_old_versions_of_tls_are_refused(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    files = TlsFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    assert files.context.minimum_version == ssl.TLSVersion.TLSv1_2
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    shake_hands(files.context, client)


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem"])
def test_files_that_are_missing_or_broken_are_named(tmp_path: Path, missing: str) -> None:
    write_pair(tmp_path)
    for damage in (lambda path: path.write_text("no PEM"), Path.unlink):
        damage(tmp_path / missing)
        with pytest.raises(TlsFilesError, match=missing):
            TlsFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


def test_a_key_with_a_password_is_refused_without_a_question(tmp_path: Path) -> None:
    write_pair(tmp_path)
    key = load_pem_private_key((tmp_path / "key.pem").read_bytes(), password=None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    with pytest.raises(TlsFilesError, match="without a password"):
        TlsFiles(str(tmp_path / "cert.pem"), str(locked))
