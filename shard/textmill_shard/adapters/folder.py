"""Opens the files of an adapter's folder without trusting the folder: regular files inside it, of bounded size."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textmill_shard.model.adapter import AdapterRefused, AdapterTooLarge

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a pipe is refused, not waited for


class AdapterFolder:
    """A folder that stays the folder that was opened, whatever happens to its name."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def has(self, name: str) -> bool:
        """Whether there is an entry of this name, of whatever kind."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the content of a regular file of the folder.

        A link is followed only where the hub's cache made the link: from a snapshot to a blob of that repository.
        Raises AdapterRefused, and AdapterTooLarge for a file of more than `max_bytes`.
        """
        if "/" in name or name in ("", ".", ".."):
            raise AdapterRefused(f"{name!r} is no name of a file in {self.path}: an adapter's files lie in its folder")
        descriptor = self._open(name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise AdapterRefused(f"{self.path / name} is no regular file")
            if status.st_size > max_bytes:
                raise AdapterTooLarge(f"{self.path / name} has {status.st_size} bytes, at most {max_bytes} are read")
            with os.fdopen(os.dup(descriptor), "rb") as file:
                content = file.read(max_bytes + 1)
            if len(content) != status.st_size:
                raise AdapterRefused(f"{self.path / name} changed while it was read")
            return content
        except OSError as error:
            raise AdapterRefused(f"{self.path / name} cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _FLAGS, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise AdapterRefused(f"{self.path} has no {name}") from error
            if error.errno != errno.ELOOP:
                raise AdapterRefused(f"{self.path / name} cannot be read: {error.strerror}") from error
        blob = self._blob_of(name)
        if blob is None:
            raise AdapterRefused(f"{self.path / name} is a link: put the file itself into the folder")
        try:
            return os.open(blob, _FLAGS)
        except OSError as error:
            raise AdapterRefused(f"{self.path / name} cannot be read: {error.strerror}") from error

    def _blob_of(self, name: str) -> Path | None:
        """Return the blob that a link of the hub's cache means: `snapshots/<revision>/<name>` -> `blobs/<digest>`."""
        if self.path.parent.name != "snapshots":
            return None
        repository = self.path.parent.parent
        try:
            target = self.path / os.readlink(name, dir_fd=self._descriptor)
        except OSError:
            return None
        blob = Path(os.path.normpath(target))
        is_blob = blob.parent == repository / "blobs" and blob.parent.resolve() == blob.parent
        return blob if is_blob else None


@contextmanager
def opened_folder(path: Path) -> Iterator[AdapterFolder]:
    """Open a folder for reading. Raises AdapterRefused where there is none."""
    try:
        resolved = path.resolve(strict=True)
        descriptor = os.open(resolved, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AdapterRefused(f"{path} is no folder that can be read: {reason}") from error
    try:
        yield AdapterFolder(resolved, descriptor)
    finally:
        os.close(descriptor)
