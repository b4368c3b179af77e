"""A child process that works on what users sent, speaks over its pipes, and can be killed."""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

SECRET_VARIABLES = ("API_KEY",)  # what works on users' input has no business with


class WorkerProcess:
    """A process with the router's environment but for its secrets. Threads may block on the pipes."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        """Start the process. `variables` are added to its environment."""
        kept = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        # The event loop would start the process by a fork, and gRPC's threads complain of every fork.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**kept, **(variables or {})}
        )

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe that the process reads."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """The pipe that the process writes."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended by itself."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process whatever the process does."""
        self._process.kill()

    def reap(self) -> None:
        """Kill the process, close its pipes and wait for its end."""
        with self._process as process:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
