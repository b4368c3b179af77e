"""What a process holds: its memory, and its open descriptors by kind."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

# The state column of /proc/<pid>/net/tcp, from the kernel's include/net/tcp_states.h.
_LISTENS = "0A"


@dataclass(frozen=True)
class Holdings:
    """The open descriptors by kind (`tcp`, `tcp listener`, `unix`, `pipe`, `file`, `[eventfd]` ...), and the memory."""

    descriptors: Mapping[str, int]
    rss_bytes: int


def holdings_of(pid: int) -> Holdings:
    """Return what a process of this machine holds. Raises psutil.NoSuchProcess when there is none."""
    process = psutil.Process(pid)
    sockets = _kinds_of_sockets(pid)
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        kinds[_kind_of(target, sockets)] += 1
    return Holdings(dict(sorted(kinds.items())), process.memory_info().rss)


def _kind_of(target: str, sockets: Mapping[str, str]) -> str:
    if target.startswith("/"):
        return "file"
    name, _, number = target.partition(":")
    if name == "socket":
        return sockets.get(number.strip("[]"), "closed socket")
    return number if name == "anon_inode" else name


def _kinds_of_sockets(pid: int) -> dict[str, str]:
    """Return the kind of each socket that the kernel lists for the process's network, by inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            found[fields[9]] = "tcp listener" if fields[3] == _LISTENS else "tcp"
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        found[line.split()[6]] = "unix"
    return found
