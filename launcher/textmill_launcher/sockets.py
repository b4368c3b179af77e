"""The Unix sockets of the shards, which only this user can reach, and a file of the router beside them."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from textmill_launcher.errors import SettingsError
from textmill_launcher.private_folder import private_folder, temporary_files


@dataclass(frozen=True, slots=True)
class SocketPlaces:
    """The paths of the sockets of one replica's shards: `<prefix>-<number>`, where the first rank's is `first`."""

    prefix: str
    first: int = 0

    def of(self, rank: int) -> Path:
        """Return the path of a rank's socket."""
        return Path(f"{self.prefix}-{self.first + rank}")

    @property
    def adapters_file(self) -> Path:
        """The file in which a router leaves the names of adapters for the router that starts after it."""
        return Path(f"{self.prefix}-adapters.json")

    def of_replica(self, replica: int, world_size: int) -> "SocketPlaces":
        """Return the places of a replica, whose numbers follow those of the replica before."""
        return SocketPlaces(self.prefix, self.first + replica * world_size)


@contextlib.contextmanager
def socket_places(prefix: str | None, num_shards: int) -> Iterator[SocketPlaces]:
    """Give the paths of the sockets out, and remove the sockets at the end.

    Without a prefix the paths lie in a new private folder. With a prefix, sockets of an earlier run are removed first.
    Raises SettingsError for a prefix in a folder where others could put a socket of theirs in the place of ours, and
    where no temporary file can be written.
    """
    if prefix is None:
        with private_folder() as folder:
            yield SocketPlaces(f"{folder}/shard")
        return
    temporary_files()
    _check_folder(Path(prefix).parent)
    places = SocketPlaces(prefix)
    _remove_sockets(places, num_shards)
    try:
        yield places
    finally:
        _remove_sockets(places, num_shards)


def _check_folder(folder: Path) -> None:
    try:
        found = folder.stat()
    except FileNotFoundError:
        raise SettingsError(f"--shard-uds-path: there is no folder {folder}") from None
    is_open = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    if is_open or found.st_uid not in (os.geteuid(), 0):
        raise SettingsError(
            f"--shard-uds-path: others can replace files in {folder}; wanted a folder that only this user may write, "
            "such as one of mode 0700; without the flag the launcher makes such a folder"
        )


def close_to_others(path: Path) -> None:
    """Set a socket's mode to 0600. The shard's umask has kept other users out since the socket exists."""
    with contextlib.suppress(FileNotFoundError):
        os.chmod(path, 0o600)


def free_port(host: str) -> int:
    """Return a port on which no process listens at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _remove_sockets(places: SocketPlaces, num_shards: int) -> None:
    for rank in range(num_shards):
        if places.of(rank).is_socket():
            places.of(rank).unlink()
    places.adapters_file.unlink(missing_ok=True)
