"""Certificates for tests of TLS, each pair of another authority."""

from pathlib import Path

import trustme


def write_pair(folder: Path, name: str = "localhost") -> trustme.CA:
    """Write `cert.pem` and `key.pem` for a server at `name` or 127.0.0.1, and return the authority behind them."""
    authority = trustme.CA()
    pair = authority.issue_cert(name, "127.0.0.1")
    pair.private_key_pem.write_to_path(str(folder / "key.pem"))
    with (folder / "cert.pem").open("wb") as file:
        for part in pair.cert_chain_pems:
            file.write(part.bytes())
    return authority
