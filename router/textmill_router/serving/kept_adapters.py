"""The names of adapters in a file, which the router of a server leaves for the next one when its process dies."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """A name, and the weights that stood behind it."""

    name: str
    folder: str
    digest: bytes


def read_kept(path: Path) -> Sequence[KeptAdapter] | None:
    """Return what the router before has left, or None where it has left nothing.

    A file that cannot be read, or that another user owns, counts as none, and a log line says so.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                raise ValueError("another user owns the file")
            return [_kept(entry) for entry in json.loads(file.read(MAX_FILE_BYTES))]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the adapters of the router before are not known", extra={"file": str(path), "error": str(error)})
        return None


def write_kept(path: Path, adapters: Sequence[KeptAdapter]) -> None:
    """Replace the file in one piece. A failure is a log line, because the adapters are loaded all the same."""
    entries = [{"name": one.name, "folder": one.folder, "digest": one.digest.hex()} for one in adapters]
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(json.dumps(entries).encode())
        fresh.replace(path)
    except OSError as error:
        log.warning("a router that starts again will not know the adapters of now", extra={"error": str(error)})


def _kept(entry: Mapping[str, Any]) -> KeptAdapter:
    return KeptAdapter(str(entry["name"]), str(entry["folder"]), bytes.fromhex(entry["digest"]))
