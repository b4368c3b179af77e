"""Two machines as far as the network can tell: network namespaces that one cable joins. Needs root and `ip`."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTENING = "0A"  # the state of a socket in /proc/PID/net/tcp


@dataclass(frozen=True, slots=True)
class FakeMachine:
    """A place for processes. `within` begins the command of a process there; the other machine reaches `address`."""

    within: tuple[str, ...]
    address: str
    interface: str
    seen_from_test: str  # the address at which the test's own process reaches a server there
    is_isolated: bool  # False: both machines are this one, with two addresses of the loopback


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces; tries it."""
    if shutil.which("ip") is None:
        return False
    name = f"tm-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError:
        return False
    _ip("netns", "del", name)
    return True


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[FakeMachine, FakeMachine]]:
    """Give two machines. Where namespaces are not allowed, they are two addresses of the loopback; a line says so."""
    if not can_make_namespaces():
        print("network namespaces are not allowed here: the two nodes are 127.0.0.1 and 127.0.0.2")
        yield (
            FakeMachine((), "127.0.0.1", "lo", "127.0.0.1", is_isolated=False),
            FakeMachine((), "127.0.0.2", "lo", "127.0.0.2", is_isolated=False),
        )
        return
    number = os.getpid() % 4_000_000
    names = [f"tm{number:x}{side}" for side in "ab"]
    doors = [f"tm{number:x}{side}" for side in "xy"]  # of the cable between the test and each machine
    subnet = f"10.{200 + number % 50}.{number // 50 % 250}"
    machines = []
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable0", "netns", names[1])
        for side, (name, door) in enumerate(zip(names, doors, strict=True)):
            address = f"{subnet}.{1 + side}"
            _ip("-n", name, "address", "add", f"{address}/30", "dev", "cable0")
            _ip("-n", name, "link", "set", "cable0", "up")
            here, there = f"{subnet}.{9 + 8 * side}", f"{subnet}.{10 + 8 * side}"
            _ip("link", "add", door, "type", "veth", "peer", "name", "door0", "netns", name)
            _ip("address", "add", f"{here}/30", "dev", door)
            _ip("link", "set", door, "up")
            _ip("-n", name, "address", "add", f"{there}/30", "dev", "door0")
            _ip("-n", name, "link", "set", "door0", "up")
            within = ("ip", "netns", "exec", name)
            machines.append(FakeMachine(within, address, "cable0", there, is_isolated=True))
        yield machines[0], machines[1]
    finally:
        for name in names:  # takes the cables along
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def listening_addresses(pid: int) -> set[str]:
    """Return the IPv4 addresses on which a process listens, in the network that the process sees."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENING and f"socket:[{fields[9]}]" in inodes:
            found.add(socket.inet_ntoa(bytes.fromhex(fields[1].partition(":")[0])[::-1]))
    return found


def cut(machine: FakeMachine) -> None:
    """Cut the cable between the two machines, so that neither hears that the other is gone."""
    assert machine.is_isolated
    _ip("-n", machine.within[3], "link", "set", machine.interface, "down")
