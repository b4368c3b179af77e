"""Copies the vendored libraries of the playground from npm, or says which copies differ.

`python -m tests.clients.vendor` copies the files of the versions in `versions.json`, and with `--check` compares them.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "router" / "textmill_router" / "api" / "playground" / "page" / "vendor"
LIMIT_S = 120


def packed_files() -> dict[str, bytes]:
    """Return the content of each vendored file as its package on npm has the file."""
    found = {}
    for name, entry in json.loads((FOLDER / "versions.json").read_text()).items():
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{entry['version']}"]
            subprocess.run(command, check=True, timeout=LIMIT_S, cwd=folder, capture_output=True)
            [archive] = Path(folder).glob("*.tgz")
            with tarfile.open(archive) as packed:
                for inside, copy in entry["files"].items():
                    member = packed.extractfile(f"package/{inside}")
                    assert member is not None, inside
                    found[copy] = member.read()
    return found


def main() -> None:
    """Exit with 1 and the names where `--check` finds copies that differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare and copy nothing")
    check = parser.parse_args().check
    files = packed_files()
    differing = [name for name, content in files.items() if not _equals(FOLDER / name, content)]
    if check:
        sys.exit(f"differs from npm: {', '.join(differing)}" if differing else 0)
    for name in differing:
        (FOLDER / name).write_bytes(files[name])


def _equals(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


if __name__ == "__main__":
    main()
