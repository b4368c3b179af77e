"""Server processes that are measured: their start, the wait until they are ready, their CPU time and their end."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.machine import process_s

STOP_TIMEOUT_S = 20.0
POLL_S = 0.1


class ServerFailed(Exception):
    """A server died or did not get ready. The message has the end of the server's log."""


def free_port() -> int:
    """Return a TCP port of the loopback on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A child with its own process group and a log file. The end of `with Server(...)` stops the whole group."""

    def __init__(self, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._log_path = log_path
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Self:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._kill_group()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The id of the process that was started."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the user and system seconds of all threads of the process, without the process's children."""
        return process_s(self.pid)

    def wait_for_http(self, url: str, timeout_s: float) -> None:
        """Wait until `url` answers 200. Raises ServerFailed."""
        self._wait(lambda: _answers(url), f"{url} did not answer 200", timeout_s)

    def wait_for_path(self, path: Path, timeout_s: float) -> None:
        """Wait until the file or socket exists. Raises ServerFailed."""
        self._wait(path.exists, f"{path} did not appear", timeout_s)

    def _wait(self, is_ready: Callable[[], bool], complaint: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_ready():
            code = self._process.poll()
            if code is not None:
                raise ServerFailed(f"{self._command[0]} exited with {code}\n{self._log_end()}")
            if time.monotonic() > deadline_s:
                raise ServerFailed(f"{complaint} within {timeout_s:.0f} s\n{self._log_end()}")
            time.sleep(POLL_S)

    def _log_end(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-20:])

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
