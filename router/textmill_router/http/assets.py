"""Files of a page under names with a digest, compressed, so that a browser may keep each file for ever."""

import gzip
import hashlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONTENT_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".png": b"image/png",
    ".svg": b"image/svg+xml",
}
DIGEST_CHARACTERS = 8
_COMPRESSED = (".css", ".js", ".svg")
# `from "./name.js"` and `import "./name.js"`, the two forms in which one module of a page names another.
_IMPORT = re.compile(r"""(?m)^((?:import|export)\b[^"';]*)(["'])(\.{1,2}/[\w./-]+\.js)\2""")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a page. `compressed` is the body in gzip, or None for a file that gzip makes no smaller."""

    name: str  # with the digest of the content, without a folder
    content_type: bytes
    body: bytes
    compressed: bytes | None


@dataclass(frozen=True, slots=True)
class Assets:
    """The files of one page. `names` maps the path of a file to the name under which the file is served."""

    names: Mapping[str, str]
    by_name: Mapping[str, Asset]


def load_assets(files: Mapping[str, Path]) -> Assets:
    """Return the files under names with their digests. `files` maps the path inside the page to the file.

    A module imports another module by its path, and the served text has the name with the digest in place of the path,
    so the digest of a module changes whenever a module behind its imports changes. Raises ValueError for an import of a
    file that is not there, and for a circle of imports, because no module of a circle has a digest before the others.
    """
    done: dict[str, Asset] = {}
    for path in files:
        _load(path, files, done, ())
    return Assets(
        names={path: asset.name for path, asset in done.items()},
        by_name={asset.name: asset for asset in done.values()},
    )


def _load(path: str, files: Mapping[str, Path], done: dict[str, Asset], above: tuple[str, ...]) -> Asset:
    if path in done:
        return done[path]
    if path in above:
        raise ValueError(f"modules import each other in a circle: {' -> '.join((*above, path))}")
    if path not in files:
        raise ValueError(f"{above[-1]} imports {path}, which is not there")
    body = files[path].read_bytes()
    stem, suffix = posixpath.splitext(posixpath.basename(path))

    def renamed(found: re.Match[str]) -> str:
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[3]))
        return f"{found[1]}{found[2]}./{_load(wanted, files, done, (*above, path)).name}{found[2]}"

    if suffix == ".js":
        body = _IMPORT.sub(renamed, body.decode()).encode()
    digest = hashlib.sha256(body).hexdigest()[:DIGEST_CHARACTERS]
    compressed = gzip.compress(body, mtime=0) if suffix in _COMPRESSED else None
    done[path] = Asset(
        name=f"{stem}.{digest}{suffix}",
        content_type=CONTENT_TYPES[suffix],
        body=body,
        compressed=compressed if compressed is not None and len(compressed) < len(body) else None,
    )
    return done[path]
