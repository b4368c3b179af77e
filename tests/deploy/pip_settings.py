"""How this machine's pip finds packages, as a configuration that also holds inside of a build."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlparse

DEFAULT_INDEX = "https://pypi.org/simple"


@dataclass(frozen=True, slots=True)
class PipSettings:
    """`text` of a pip.conf, the folders that it names, and the file of certificates that pip trusts here."""

    CERTIFICATES_INSIDE: ClassVar[str] = "/run/certificates.crt"  # outside of /etc/ssl, which packages write

    text: str
    index: str
    paths: tuple[Path, ...]
    certificates: Path | None


def pip_settings() -> PipSettings:
    """Read `pip config list`, where the environment and all configuration files are already joined."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    values = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        values[key.rpartition(".")[2]] = value.strip("'\"")
    lines = ["[global]"]
    paths: list[Path] = []
    for key in ("index-url", "extra-index-url", "find-links", "constraint"):
        places = values.get(key, "").split()
        local = [Path(urlparse(place).path) for place in places if "://" not in place or place.startswith("file:")]
        # The pages of a local index point at files beside its folder.
        paths += [path.parent if path.name == "simple" else path for path in local if path.exists()]
        if places:
            lines.append(f"{key} = {' '.join(places)}")
    certificates = Path(values["cert"]) if values.get("cert") else None
    if certificates is not None:
        lines.append(f"cert = {PipSettings.CERTIFICATES_INSIDE}")
    return PipSettings(
        text="\n".join(lines) + "\n",
        index=values.get("index-url", DEFAULT_INDEX),
        paths=tuple(dict.fromkeys(paths)),
        certificates=certificates,
    )
