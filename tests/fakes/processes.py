"""Starts real launchers for tests, waits for them, and ends them by their process ids."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
from textmill_launcher.settings import ALL_OPTIONS

START_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0
POLL_INTERVAL_S = 0.05
# Variables that would change what a launcher does. Tests set options by flags.
_KEPT_OUT = {name for option in ALL_OPTIONS for name in (*option.variables, *option.platform_variables)} | {
    "CUDA_VISIBLE_DEVICES",
    "GRPC_ENABLE_FORK_SUPPORT",
}


def free_port() -> int:
    """Return a port of the loopback on which no process listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], limit_s: float, what: str, seen: Callable[[], str] = lambda: "") -> None:
    """Wait until the condition holds. After the limit fail with the words `what` and the text that `seen` returns."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {limit_s} s in vain until {what}\n{seen()}")
        time.sleep(POLL_INTERVAL_S)


class LaunchedServer:
    """One launcher process and its children."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log_file: Path, host: str = "127.0.0.1") -> None:
        self.process = process
        self.base_url = f"http://{host}:{port}"
        self._log_file = log_file

    @property
    def log_text(self) -> str:
        """The output of the launcher so far."""
        return self._log_file.read_text()

    def children(self, module: str = "") -> list[psutil.Process]:
        """Return the living children whose command line names the module (`textmill_shard`, `textmill_router`)."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in psutil.Process(self.process.pid).children() if _names(child, module)]
        return []

    def health(self) -> int | None:
        """Return the status of GET /health, or None while no process listens."""
        try:
            return httpx.get(f"{self.base_url}/health", timeout=5, trust_env=False).status_code
        except httpx.TransportError:
            return None

    def wait_ready(self, limit_s: float = START_LIMIT_S) -> "LaunchedServer":
        """Wait until the launcher says that it serves."""
        self.wait_for_log("ready after", limit_s, last_word=" on http")
        return self

    def wait_for_log(self, words: str, limit_s: float = START_LIMIT_S, last_word: str = "") -> None:
        """Wait for a line of the log. When the launcher ends instead, fail with its log."""

        def is_there() -> bool:
            if any(words in line and last_word in line for line in self.log_text.splitlines()):
                return True
            assert self.process.poll() is None, f"the launcher ended with {self.process.returncode}:\n{self.log_text}"
            return False

        wait_until(is_there, limit_s, f"the log says {words!r}:", lambda: self.log_text)

    def wait_exit(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Wait for the launcher's end, and return its exit code."""
        return self.process.wait(limit_s)

    def stop(self, number: signal.Signals = signal.SIGTERM, limit_s: float = STOP_LIMIT_S) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait_exit(limit_s)


def start_launcher(
    arguments: Sequence[str],
    folder: Path,
    port: int | None = None,
    within: Sequence[str] = (),
    host: str = "127.0.0.1",
    **environ: str,
) -> LaunchedServer:
    """Start a launcher, by default on a free port, with its log in `folder`. The caller ends the launcher.

    `within` begins the command, as `ip netns exec NAME` does, and `host` is where the test reaches the server.
    """
    port = free_port() if port is None else port
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / f"launcher-{port}.log"
    kept = {name: value for name, value in os.environ.items() if name not in _KEPT_OUT}
    command = [*within, sys.executable, "-m", "textmill_launcher", "--hostname", host, "--port", str(port), *arguments]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**kept, **environ})
    return LaunchedServer(process, port, log_file, host)


@contextlib.contextmanager
def launched(
    arguments: Sequence[str],
    folder: Path,
    port: int | None = None,
    within: Sequence[str] = (),
    host: str = "127.0.0.1",
    **environ: str,
) -> Iterator[LaunchedServer]:
    """Start a launcher, and end the launcher with all its children when the block is left."""
    server = start_launcher(arguments, folder, port, within, host, **environ)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                server.process.kill()  # the children die with the launcher
                server.process.wait(STOP_LIMIT_S)


def _names(process: psutil.Process, module: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(module in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False
