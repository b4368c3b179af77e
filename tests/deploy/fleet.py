"""Several launchers of a tiny model on one machine, as a proxy or a router has them behind it."""

import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from tests.fakes.processes import STOP_LIMIT_S, LaunchedServer, free_port, launched
from tests.fakes.tiny_models import make_tiny_llama

ANSWERED = re.compile(r"Success request=(\S+)")
LIMIT_S = 30


class Fleet:
    """Launchers by port. `running_fleet` makes a fleet and ends its processes."""

    def __init__(self, folder: Path, stack: ExitStack, flags: Sequence[str]) -> None:
        self._folder = folder
        self._stack = stack
        model = make_tiny_llama(folder / "model", max_position_embeddings=4096)
        self._arguments = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", str(16 << 20), *flags]
        self._flags: dict[int, Sequence[str]] = {}
        self._num_started = 0
        self._logs: list[LaunchedServer] = []
        self.servers: dict[int, LaunchedServer] = {}

    def start(self, port: int | None = None, flags: Sequence[str] = ()) -> int:
        """Start a launcher, without a wait, and return its port. A port that was used before keeps its flags."""
        port = free_port() if port is None else port
        self._flags.setdefault(port, flags)
        self._num_started += 1
        folder = self._folder / f"launcher-{self._num_started}"
        server = self._stack.enter_context(launched([*self._arguments, *self._flags[port]], folder, port=port))
        self.servers[port] = server
        self._logs.append(server)
        return port

    @property
    def ports(self) -> list[int]:
        """The ports of the servers that were started last."""
        return list(self.servers)

    def url(self, port: int) -> str:
        """Return the address of the server."""
        return self.servers[port].base_url

    def wait_ready(self) -> None:
        """Wait until all servers serve."""
        for server in self.servers.values():
            server.wait_ready()

    def terminate(self, port: int) -> None:
        """Ask a server to leave, and wait for its end."""
        assert self.servers[port].stop(signal.SIGTERM) == 0

    def kill(self, port: int) -> None:
        """Kill a server with all its processes, as a machine that loses its power."""
        process = psutil.Process(self.servers[port].process.pid)
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        self.servers[port].process.wait(STOP_LIMIT_S)
        psutil.wait_procs(family, STOP_LIMIT_S)
        for folder in set(re.findall(r"uds_path=([^\s'(]+)/shard-0", self.servers[port].log_text)):
            shutil.rmtree(folder)  # of its sockets, which a killed launcher leaves

    def answered_ids(self, port: int | None = None) -> list[str]:
        """Return the id of each call that was answered whole, once for each answer: by one server, or by all so far."""
        servers = self._logs if port is None else [self.servers[port]]
        return [name for server in servers for name in ANSWERED.findall(server.log_text)]

    def metric(self, port: int, name: str) -> float:
        """Return the value of a metric of a server, over all labels."""
        page = httpx.get(f"{self.url(port)}/metrics", timeout=LIMIT_S, trust_env=False).text
        values = [line.rsplit(" ", 1)[1] for line in page.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(value) for value in values)


@contextmanager
def running_fleet(folder: Path, flags_of_each: Sequence[Sequence[str]], *flags: str) -> Iterator[Fleet]:
    """Start servers with flags of all and flags of each, and wait until all of them serve."""
    with ExitStack() as stack:
        fleet = Fleet(folder, stack, flags)
        for flags_of_one in flags_of_each:
            fleet.start(flags=flags_of_one)
        fleet.wait_ready()
        yield fleet
