"""One child process, with a process group of its own. It writes into the launcher's log and dies with the launcher."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from textmill_launcher.child_name import ChildName
from textmill_launcher.logs import ChildOutput
from textmill_launcher.progress_bar import LOGGER, read_share

NUM_LAST_LINES = 20
MAX_LINE_BYTES = 64 * 1024  # a longer line is cut into several
OUTPUT_END_TIMEOUT_S = 5.0  # for the rest of the output after the child has ended
URGE_INTERVAL_S = 0.5  # between two signals, because signals that come faster than a process reads them count as one
_PR_SET_PDEATHSIG = 1


progress_log = logging.getLogger(LOGGER)


class ChildProcess:
    """A started child. The code that calls `spawn` also calls `stop`, on whichever way that code is left."""

    def __init__(self, name: ChildName, process: "subprocess.Popen[bytes]", output: ChildOutput) -> None:
        self.name = name
        self._process = process
        self._output = output
        self._last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._last_stdout_line = ""
        self.ended_s: float | None = None  # when the process ended, on the monotonic clock
        self._readers = [asyncio.create_task(self._read(is_stdout=flag)) for flag in (True, False)]
        self._exit_code = self._watch_exit()
        self._end = asyncio.create_task(self._wait_for_end())

    @classmethod
    def spawn(
        cls,
        name: ChildName,
        argv: Sequence[str],
        environ: Mapping[str, str],
        output: ChildOutput,
        umask: int = -1,
        *,
        has_input: bool = False,
    ) -> "ChildProcess":
        """Start `argv` in a process group of its own. Call from the main thread: see `_die_with_parent`.

        With `has_input` the child's standard input is a pipe for `tell`.
        """
        process = subprocess.Popen(
            list(argv),
            env=dict(environ),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # Ctrl-C reaches the launcher alone, which stops the children in order
            umask=umask,
            preexec_fn=_die_with_parent(os.getpid()),
        )
        return cls(name, process, output)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of output, oldest first."""
        return tuple(self._last_lines)

    @property
    def last_stdout_line(self) -> str:
        """The last line on standard output that is not empty, which is the answer of a download or a conversion."""
        return self._last_stdout_line

    @property
    def is_running(self) -> bool:
        """True until the child has ended and its output was read."""
        return not self._end.done()

    async def wait(self) -> int:
        """Wait for the end of child and output, and return the exit code (negative: the signal). Safe to cancel."""
        return await asyncio.shield(self._end)

    async def stop(self, grace_s: float) -> int:
        """End the child by SIGTERM, and after `grace_s` by SIGKILL to its whole group. Returns the exit code."""
        if not self._exit_code.done():
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.wait(), grace_s)
            self.kill()
        return await self.wait()

    async def urge(self, grace_s: float) -> int:
        """End the child as `stop` does, but repeat SIGTERM until the child ends.

        A router that gets SIGTERM again does not wait for its requests: it answers them with an error.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while not self._exit_code.done():
                    self._signal(signal.SIGTERM)
                    await asyncio.wait([self._exit_code], timeout=URGE_INTERVAL_S)
        return await self.stop(0.0)

    def tell(self, line: str) -> None:
        """Write a line to the child's standard input. A child that does not read, or has ended, misses the line."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the pipe is full, broken or closed
            os.set_blocking(self._process.stdin.fileno(), False)
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")

    def report(self) -> None:
        """Let the child write what it does: SIGUSR1, which it ignores until it is ready to answer."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """Send SIGKILL to the whole group."""
        self._signal(signal.SIGKILL)

    def _watch_exit(self) -> "asyncio.Future[int]":
        """Return a future of the exit code.

        asyncio's own wait ends only when all pipes are closed, which a process that the child started may delay.
        """
        loop = asyncio.get_running_loop()
        exit_code: asyncio.Future[int] = loop.create_future()

        def tell(code: int) -> None:
            if not exit_code.done():
                exit_code.set_result(code)

        def watch() -> None:
            code = self._process.wait()
            self.ended_s = time.monotonic()
            with contextlib.suppress(RuntimeError):  # raised by a closed loop, in which nobody waits for the code
                loop.call_soon_threadsafe(tell, code)

        threading.Thread(target=watch, name=f"exit of {self._process.pid}", daemon=True).start()
        return exit_code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _wait_for_end(self) -> int:
        code = await self._exit_code
        self.kill()  # processes that the child had started must not outlive the child
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.wait(self._readers, timeout=OUTPUT_END_TIMEOUT_S)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        return code

    async def _read(self, is_stdout: bool) -> None:
        """Take the lines of one stream until its end, which comes when no process holds the stream open any more."""
        pipe = self._process.stdout if is_stdout else self._process.stderr
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        with contextlib.closing(transport):
            await self._take_all(reader, is_stdout)

    async def _take_all(self, reader: asyncio.StreamReader, is_stdout: bool) -> None:
        rest = b""
        while piece := await reader.read(MAX_LINE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(line, is_stdout)
            if len(rest) > MAX_LINE_BYTES:
                self._take(rest, is_stdout)
                rest = b""
        if rest:
            self._take(rest, is_stdout)

    def _take(self, line: bytes, is_stdout: bool) -> None:
        # A progress bar writes each new state after a carriage return, and only its last state counts.
        text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
        if not text.strip():
            return
        progress = read_share(text)
        if progress is not None:
            phase, share = progress
            progress_log.debug("", extra={"child": str(self.name), "phase": phase, "share": share})
            return
        self._last_lines.append(text)
        if is_stdout:
            self._last_stdout_line = text
        self._output.write(self.name, text)


def _die_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """Return the function that the child runs before exec, which asks Linux for SIGKILL when the launcher dies.

    The kernel sends the signal when the *thread* that forked ends, so only the main thread spawns children. A restart
    forks while gRPC has threads. No lock of these threads matters to the child, because the child calls exec at once
    and gRPC has no handlers of forks unless GRPC_ENABLE_FORK_SUPPORT is set.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Looked up before the fork, because the child must not import or allocate between fork and exec.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # would end a child that has not begun to handle the signal
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # the launcher died between fork and prctl
            os._exit(1)

    return arrange
