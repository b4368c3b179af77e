"""A disk that is soon full: a tmpfs of a few kilobytes in a mount namespace that one command sees alone."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT_S = 200
# Root may mount by itself; others may where the kernel gives them a user namespace.
_UNSHARE = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--mount")


def can_mount(folder: Path) -> bool:
    """Whether this process may mount; tries it on the folder, for a command that does nothing."""
    try:
        return run_on_small_disk(["true"], folder, num_kib=64, environ=os.environ).returncode == 0
    except FileNotFoundError:
        return False


def run_on_small_disk(
    command: Sequence[str], folder: Path, *, num_kib: int, environ: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run a command for which `folder` is an empty disk of `num_kib` KiB. The disk is gone with the command."""
    script = 'mount -t tmpfs -o "size=$1k" tmpfs "$2" && shift 2 && exec "$@"'
    return subprocess.run(
        [*_UNSHARE, "sh", "-c", script, "sh", str(num_kib), str(folder), *command],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
