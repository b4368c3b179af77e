"""A folder that only this user can enter, which is removed at the end, or by the next launcher after a SIGKILL."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from textmill_launcher.errors import SettingsError

PREFIX = "textmill-"
# The owner holds a lock on this file for as long as the owner lives. The kernel gives the lock back, however the owner
# ends, and unlike a process id a lock is never taken over by a stranger.
OWNER_FILE = "owner"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Give out a new folder of mode 0700, after the folders of dead owners are removed.

    Raises SettingsError where there can be no folder.
    """
    parent = temporary_files()
    remove_orphans(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
    except OSError as error:
        raise _no_place(error) from None
    try:
        with _owned(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_files() -> Path:
    """Return the folder for temporary files, which the shards need too, because torch does not start without one.

    Raises SettingsError.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise _no_place(error) from None


def _no_place(error: OSError) -> SettingsError:
    return SettingsError(
        f"there is no place for temporary files: {error}; make /tmp a folder that may be written, or name another one "
        "by the variable TMPDIR"
    )


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
    """Hold the lock. The file has its name only once the lock is held, so that nobody finds the lock free before.

    A second lock, on the folder, keeps systemd-tmpfiles from removing the files of a server that runs for weeks
    (tmpfiles.d(5): a folder with a BSD lock is not aged).
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, inside)
            fcntl.flock(inside, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # A full disk, or a file system without locks: the folder then stays after a SIGKILL.
        with contextlib.suppress(OSError):
            fresh = folder / f"{OWNER_FILE}.new"
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(fresh, folder / OWNER_FILE)
        yield


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
