"""When a living shard counts as hung."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from textmill_launcher import hang_watch
from textmill_launcher.child_name import ChildName
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.hang_watch import (
    HEALTH_TIMEOUT_S,
    HangJudge,
    Sign,
    is_process_busy,
    is_process_stopped,
    wait_for_hang,
    wait_for_router_hang,
)
from textmill_launcher.logs import ChildOutput
from textmill_launcher.readiness import wait_for_shard
from textmill_proto.v1 import shard_pb2_grpc
from textmill_proto.v1.shard_pb2 import SHARD_STATE_READY, HealthReport

from tests.fakes.processes import wait_until

STEP_S = 0.25
LIMIT_S = 20.0


def judged(*signs: Sign, must_answer: bool = True, step_s: float = STEP_S) -> list[str | None]:
    """Return the verdicts of looks at these times: 0, `step_s`, 2 x `step_s` and so on."""
    judge = HangJudge(0.0)
    return [judge.judge(sign, (number + 1) * step_s, must_answer=must_answer) for number, sign in enumerate(signs)]


def report(*, step: int, overdue_ms: int = 0, limit_ms: int = 1500, is_busy: bool = False) -> Sign:
    health = HealthReport(last_step=step, overdue_ms=overdue_ms, progress_limit_ms=limit_ms)
    return Sign(is_busy=is_busy, report=health)


SILENT = Sign()
STOPPED = Sign(is_stopped=True)


def test_stopped_process_is_hung_at_the_second_look_also_while_it_loads() -> None:
    for must_answer in (True, False):
        first, second = judged(STOPPED, STOPPED, must_answer=must_answer)
        assert first is None
        assert second is not None
        assert "SIGSTOP" in second


def test_process_that_goes_on_between_two_looks_is_not_hung() -> None:
    assert judged(STOPPED, report(step=3), STOPPED) == [None, None, None]


def test_late_step_is_hung_when_two_looks_find_the_same_step() -> None:
    verdicts = judged(report(step=7), report(step=7, overdue_ms=1), report(step=7, overdue_ms=251))
    assert verdicts[:2] == [None, None]
    assert verdicts[2] is not None
    assert "within 1.5 s" in verdicts[2]


def test_late_steps_that_end_are_slow_and_not_hung() -> None:
    assert judged(*(report(step=step, overdue_ms=9) for step in range(7, 12))) == [None] * 5


def test_late_step_that_computes_is_hung_much_later() -> None:
    # 10 s and three times the limit of 1.5 s.
    verdicts = judged(*(report(step=7, overdue_ms=ms, is_busy=True) for ms in (300, 14_500, 14_501, 14_751)))
    assert verdicts[:3] == [None] * 3
    assert verdicts[3] is not None


def test_silence_counts_from_the_last_answer_and_allows_for_the_largest_step() -> None:
    # The shard answers at 0.25 s. With 1 s of slack and a limit of 1.5 s the silence may last until 2.75 s.
    verdicts = judged(report(step=1), *[SILENT] * 11)
    assert verdicts[:11] == [None] * 11
    assert verdicts[11] is not None
    assert "has not answered Health for 2.8 s" in verdicts[11]


def test_silent_shard_that_computes_is_hung_much_later() -> None:
    # 17 s after the answer at 0.25 s: 1 s, the limit of 1.5 s, and for the work 10 s and three times the limit.
    busy = Sign(is_busy=True)
    verdicts = judged(report(step=1), *[busy] * 69)
    assert verdicts[:69] == [None] * 69
    assert verdicts[69] is not None


def test_silence_while_loading_says_nothing() -> None:
    assert judged(*[SILENT] * 100, must_answer=False) == [None] * 100


def test_look_that_comes_late_begins_again_because_the_launcher_did_not_run() -> None:
    judge = HangJudge(0.0)
    assert judge.judge(report(step=1), 0.25, must_answer=True) is None
    assert judge.judge(SILENT, 60.0, must_answer=True) is None
    assert judge.judge(report(step=1, overdue_ms=59_000), 60.25, must_answer=True) is None
    assert judge.judge(report(step=2), 60.5, must_answer=True) is None


def test_states_of_processes_are_read_from_the_system() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        wait_until(lambda: not is_process_busy(sleeper.pid), LIMIT_S, "the process sleeps")
        assert not is_process_stopped(sleeper.pid)
        sleeper.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_process_stopped(sleeper.pid), LIMIT_S, "the process is stopped")
    finally:
        sleeper.kill()
        sleeper.wait(LIMIT_S)
    assert is_process_busy(os.getpid())
    assert not is_process_stopped(sleeper.pid)  # gone


@pytest.mark.parametrize("does_answer", [True, False])
def test_router_that_does_not_answer_is_hung(does_answer: bool) -> None:
    answering: set[asyncio.Task[Any]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if does_answer:
                    writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:
            pass  # the caller has left
        finally:
            writer.transport.abort()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        output = ChildOutput(io.StringIO(), json_output=False)
        router = ChildProcess.spawn(ChildName("router"), sleeper, os.environ, output)
        hang = asyncio.create_task(wait_for_router_hang(router, url, silence_s=1.0))
        try:
            if does_answer:
                await asyncio.wait([hang], timeout=2.0)
                assert not hang.done()
                os.kill(router.pid, signal.SIGSTOP)
                assert "SIGSTOP" in await hang
            else:
                assert "has not answered /health/live" in await hang
        finally:
            hang.cancel()
            await router.stop(0.0)
            server.close()
            for task in answering:
                task.cancel()
            await asyncio.gather(*answering, return_exceptions=True)
            await asyncio.sleep(0)  # an aborted connection closes its socket in the next turn of the loop

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_shard_that_is_stopped_while_it_is_asked_is_stopped_and_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        shard = ChildProcess.spawn(ChildName("shard", 0), command, os.environ, ChildOutput(io.StringIO(), False))
        is_ready = asyncio.Event()
        is_ready.set()

        async def stop_and_run_out(stub: object) -> None:
            os.kill(shard.pid, signal.SIGSTOP)
            await asyncio.sleep(HEALTH_TIMEOUT_S + 0.05)

        monkeypatch.setattr(hang_watch, "_ask", stop_and_run_out)
        try:
            assert "SIGSTOP" in await wait_for_hang(shard, tmp_path / "s", is_ready, lambda: False)
        finally:
            await shard.stop(0.0)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_stopped_shard_is_found_within_two_looks_although_it_does_not_answer(tmp_path: Path) -> None:
    async def main() -> None:
        output = ChildOutput(io.StringIO(), json_output=False)
        shard = ChildProcess.spawn(
            ChildName("shard", 0),
            [sys.executable, "-m", "tests.fakes.fake_shard", "--uds-path", str(tmp_path / "s")],
            os.environ,
            output,
        )
        is_ready = asyncio.Event()
        is_ready.set()
        try:
            await wait_for_shard(ChildName("shard", 0), tmp_path / "s")
            hang = asyncio.create_task(wait_for_hang(shard, tmp_path / "s", is_ready, lambda: False))
            await asyncio.sleep(0)
            os.kill(shard.pid, signal.SIGSTOP)
            began_s = time.monotonic()
            assert "SIGSTOP" in await hang
            # Far less than two calls of Health that run out, also on a crowded machine.
            assert time.monotonic() - began_s < 2 * HEALTH_TIMEOUT_S
        finally:
            await shard.stop(0.0)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


class LateShard(shard_pb2_grpc.ShardServicer):
    """A rank whose step loop is late in every answer."""

    async def Health(self, request: Any, context: Any) -> HealthReport:
        return HealthReport(state=SHARD_STATE_READY, last_step=7, overdue_ms=500, progress_limit_ms=1200)


@pytest.mark.parametrize("kind", ["rank 0", "rank 0 beside a busy rank", "follower"])
def test_late_rank_is_hung_only_as_rank_0_and_while_no_rank_computes(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        output = ChildOutput(io.StringIO(), json_output=False)
        program = "while True: pass" if "busy" in kind else "import time; time.sleep(60)"
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        server = grpc.aio.server()
        shard_pb2_grpc.add_ShardServicer_to_server(LateShard(), server)
        server.add_insecure_port(f"unix:{tmp_path / 's'}")
        await server.start()
        rank_0 = ChildProcess.spawn(ChildName("shard", 0), sleeper, os.environ, output)
        other = ChildProcess.spawn(ChildName("shard", 1), [sys.executable, "-c", program], os.environ, output)
        is_ready = asyncio.Event()
        is_ready.set()
        are_others_busy = None if kind == "follower" else lambda: is_process_busy(other.pid)
        hang = asyncio.create_task(wait_for_hang(rank_0, tmp_path / "s", is_ready, are_others_busy))
        try:
            if kind == "rank 0":
                assert "no step within 1.2 s" in await asyncio.wait_for(hang, LIMIT_S)
            else:
                await asyncio.wait([hang], timeout=1.5)  # six looks
                assert not hang.done()
        finally:
            hang.cancel()
            for child in (rank_0, other):
                await child.stop(0.0)
            await server.stop(None)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
