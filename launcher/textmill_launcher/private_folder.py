"""A folder that only this user can enter, which is removed at the end, or by the next launcher after a SIGKILL."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "textmill-"
# The owner holds a lock on this file for as long as the owner lives. The kernel gives the lock back, however the owner
# ends, and unlike a process id a lock is never taken over by a stranger.
OWNER_FILE = "owner"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Give out a new folder of mode 0700, after the folders of dead owners are removed.

    Raises OSError where there can be no folder.
    """
    remove_orphans(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    try:
        with _owned(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_orphans(parent: Path) -> None:
    """Remove the private folders below `parent` that belong to this user and whose owner is dead.

    A folder without the owner's file is left alone, because its owner may not have come so far yet.
    """
    with contextlib.suppress(OSError):
        for found in sorted(parent.glob(f"{PREFIX}*")):
            with contextlib.suppress(OSError):
                _remove_if_orphan(found)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the lock. The file has its name only once the lock is held, so that nobody finds the lock free before."""
    descriptor = os.open(folder / f"{OWNER_FILE}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the folder then stays after a SIGKILL
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / f"{OWNER_FILE}.new", folder / OWNER_FILE)
        yield
    finally:
        os.close(descriptor)


def _remove_if_orphan(folder: Path) -> None:
    """Remove a folder unless its lock is held. Raises OSError for what is no private folder of this user."""
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(inside)
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) != 0o700:
            return
        owner = os.open(OWNER_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: the owner lives
            shutil.rmtree(folder)
        finally:
            os.close(owner)
    finally:
        os.close(inside)
