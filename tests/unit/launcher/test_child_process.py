"""The output, the end and the signals of a child, which never outlives the launcher."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher.child_name import ChildName
from textmill_launcher.child_process import MAX_LINE_BYTES, NUM_LAST_LINES, ChildProcess
from textmill_launcher.logs import ChildOutput

LIMIT_S = 20.0
NAME = ChildName("shard", 0)


def run(main: Callable[[io.StringIO], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(io.StringIO()), LIMIT_S))


def spawn(stream: io.StringIO, program: str, umask: int = -1) -> ChildProcess:
    argv = [sys.executable, "-u", "-c", textwrap.dedent(program)]
    return ChildProcess.spawn(NAME, argv, os.environ, ChildOutput(stream, json_output=False), umask)


async def wait_for_line(stream: io.StringIO, words: str) -> None:
    while words not in stream.getvalue():  # noqa: ASYNC110 - a text stream has no event to wait for
        await asyncio.sleep(0.01)


def wait_until_gone(pid: int) -> None:
    """Wait until no process has the id. A dead process that init has not collected yet counts as gone."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


def test_lines_of_both_streams_are_written_with_the_name() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "import sys; print('one'); print('two', file=sys.stderr); print('end', end='')")
        assert await child.wait() == 0
        assert sorted(stream.getvalue().splitlines()) == [f"{NAME}: end", f"{NAME}: one", f"{NAME}: two"]
        assert child.last_stdout_line == "end"

    run(main)


def test_last_lines_are_kept() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "for i in range(100): print(i)\nraise SystemExit(3)")
        assert await child.wait() == 3
        assert child.last_lines == tuple(str(i) for i in range(100 - NUM_LAST_LINES, 100))

    run(main)


def test_endless_line_is_cut_and_bad_utf8_is_shown() -> None:
    async def main(stream: io.StringIO) -> None:
        program = f"import os\nos.write(1, b'x' * {3 * MAX_LINE_BYTES})\nos.write(1, b'\\nbad \\xff\\n')"
        child = spawn(stream, program)
        assert await child.wait() == 0
        assert stream.getvalue().count("x") == 3 * MAX_LINE_BYTES
        assert max(map(len, stream.getvalue().splitlines())) < 3 * MAX_LINE_BYTES
        assert "bad \N{REPLACEMENT CHARACTER}" in stream.getvalue()

    run(main)


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "print('  0 %\\r 50 %\\r100 %')")
        await child.wait()
        assert stream.getvalue() == f"{NAME}: 100 %\n"

    run(main)


def test_stop_ends_a_polite_child_with_sigterm() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "import signal; print('up'); signal.pause()")
        await wait_for_line(stream, "up")
        assert await child.stop(LIMIT_S) == -signal.SIGTERM
        assert not child.is_running

    run(main)


def test_urging_signals_again_until_the_child_ends() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(
            stream,
            """
            import signal, sys, time
            signals = []
            signal.signal(signal.SIGTERM, lambda *_: signals.append(1) or len(signals) > 1 and sys.exit(7))
            print("ready")
            while True: time.sleep(0.01)
            """,
        )
        await wait_for_line(stream, "ready")
        assert await child.urge(grace_s=LIMIT_S) == 7
        assert await child.urge(grace_s=LIMIT_S) == 7  # the child has ended already

    run(main)


def test_urging_kills_in_the_end() -> None:
    async def main(stream: io.StringIO) -> None:
        program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(100)"
        child = spawn(stream, program)
        await wait_for_line(stream, "ready")
        assert await child.urge(grace_s=0.1) == -signal.SIGKILL

    run(main)


def test_stop_kills_a_stubborn_child_and_what_it_started() -> None:
    async def main(stream: io.StringIO) -> None:
        program = """
            import signal, subprocess, sys
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print("grandchild", grandchild.pid)
            signal.pause()
        """
        child = spawn(stream, program)
        await wait_for_line(stream, "grandchild")
        grandchild = int(stream.getvalue().split()[-1])
        assert await child.stop(0.1) == -signal.SIGKILL
        wait_until_gone(grandchild)

    run(main)


def test_grandchild_does_not_outlive_a_child_that_ends_by_itself() -> None:
    async def main(stream: io.StringIO) -> None:
        program = """
            import subprocess, sys
            print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
        """
        child = spawn(stream, program)
        assert await child.wait() == 0
        wait_until_gone(int(child.last_stdout_line))

    run(main)


def test_waiting_can_be_cancelled_and_taken_up_again() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "input_ = __import__('signal').pause()")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.wait(), 0.05)
        assert child.is_running
        await child.stop(LIMIT_S)

    run(main)


def test_umask_reaches_the_child() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "import os; print(oct(os.umask(0)))", umask=0o077)
        await child.wait()
        assert child.last_stdout_line == "0o77"

    run(main)


def test_child_is_in_a_process_group_of_its_own() -> None:
    async def main(stream: io.StringIO) -> None:
        child = spawn(stream, "import os; print(os.getpgrp() == os.getpid())")
        await child.wait()
        assert child.last_stdout_line == "True"

    run(main)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can signal the death of a parent")
def test_child_dies_when_the_launcher_is_killed() -> None:
    launcher = """
        import asyncio, os, sys
        from textmill_launcher.child_name import ChildName
        from textmill_launcher.child_process import ChildProcess
        from textmill_launcher.logs import ChildOutput

        async def main():
            argv = [sys.executable, "-c", "import time; time.sleep(600)"]
            child = ChildProcess.spawn(ChildName("shard", 0), argv, os.environ, ChildOutput(sys.stdout, False))
            print(child.pid, flush=True)
            await child.wait()

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(launcher)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        parent.kill()
    wait_until_gone(child_pid)
