"""Finds a child that lives and does not work: stopped by a signal, silent, or, as a shard, late with its step.

Exits are not the business of this file (`child_watch.py`).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from textmill_launcher.child_process import ChildProcess
from textmill_launcher.readiness import CHANNEL_OPTIONS

LOOK_INTERVAL_S = 0.25
# So many looks in a row must find the fault, so that a machine that slept does not make every shard look hung.
NUM_LOOKS = 2
HEALTH_TIMEOUT_S = 1.0
# Beside the limit of its steps, because a step may hold the interpreter that answers Health.
SILENCE_SLACK_S = 1.0
# A late or silent shard that computes, or waits for a processor or a disk, may only be slow on a crowded machine.
BUSY_SLACK_S = 10.0
BUSY_FACTOR = 3.0
# The event loop of a router never works for so long at a stretch, also on a crowded machine.
ROUTER_SILENCE_S = 15.0
ROUTER_LOOK_INTERVAL_S = 0.5
_IS_STOPPED = "is stopped by a signal (SIGSTOP or SIGTSTP)"
# The states of a thread in /proc: stopped by a signal (a debugger shows as "t"), and computing or waiting for a disk.
_STOPPED = "T"
_BUSY = frozenset("RD")


@dataclass(frozen=True, slots=True)
class Sign:
    """What one look at a shard has found."""

    is_stopped: bool = False
    is_busy: bool = False  # a rank computes, or waits for a processor or a disk; looked for in late and silent shards
    report: shard_pb2.HealthReport | None = None  # None: no answer, or not asked


class HangJudge:
    """Judges the signs of one shard, in order. Pure: times are handed in, in seconds of one clock."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._answered_s = now_s
        self._limit_s = 0.0
        self._num_stopped = 0
        self._num_late = 0
        self._late_step = 0

    def judge(self, sign: Sign, now_s: float, *, must_answer: bool) -> str | None:
        """Return why the shard counts as hung, or None.

        `must_answer` says that the shard was asked. A look that comes late makes the judge begin again, because the
        launcher itself did not run.
        """
        if now_s - self._looked_s > HEALTH_TIMEOUT_S + 2 * LOOK_INTERVAL_S:
            self._num_stopped = self._num_late = 0
            self._answered_s = now_s
        self._looked_s = now_s
        self._num_stopped = self._num_stopped + 1 if sign.is_stopped else 0
        if self._num_stopped >= NUM_LOOKS:
            return _IS_STOPPED
        if sign.report is not None or not must_answer:
            self._answered_s = now_s
        if sign.report is None:
            silent_s = now_s - self._answered_s
            if silent_s > SILENCE_SLACK_S + self._limit_s + self._allowance_s(sign.is_busy):
                return f"has not answered Health for {silent_s:.1f} s"
            return None
        return self._judge_steps(sign.report, sign.is_busy)

    def _allowance_s(self, is_busy: bool) -> float:
        return BUSY_SLACK_S + BUSY_FACTOR * self._limit_s if is_busy else 0.0

    def _judge_steps(self, report: shard_pb2.HealthReport, is_busy: bool) -> str | None:
        self._limit_s = report.progress_limit_ms / 1000
        is_late = report.overdue_ms > self._allowance_s(is_busy) * 1000
        is_same = report.last_step == self._late_step
        self._late_step = report.last_step
        self._num_late = (self._num_late + 1 if is_same else 1) if is_late else 0
        if self._num_late < NUM_LOOKS:
            return None
        return (
            f"has made no step within {self._limit_s:.1f} s, the limit by its largest steps (last: {report.last_step})"
        )


async def wait_for_hang(
    child: ChildProcess, socket: Path, is_ready: asyncio.Event, are_others_busy: Callable[[], bool] | None = None
) -> str:
    """Return why the child hangs, once it does. From `is_ready` on the shard is asked for its health.

    Rank 0 comes with `are_others_busy` and is judged by its steps: a rank that hangs makes rank 0 wait, and a rank that
    computes makes all of them busy. A follower is not judged by its steps, because a follower may wait for rank 0
    as long as rank 0 may take.
    """
    judge = HangJudge(time.monotonic())
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS) as channel:
        stub = shard_pb2_grpc.ShardStub(channel)
        while True:
            is_stopped = is_process_stopped(child.pid)
            must_answer = is_ready.is_set() and not is_stopped  # a stopped process would only let the call run out
            report = await _ask(stub) if must_answer else None
            if must_answer and report is None and is_process_stopped(child.pid):
                is_stopped, must_answer = True, False  # stopped while it was asked
            is_busy = False
            if report is None:
                is_busy = must_answer and is_process_busy(child.pid)
            elif are_others_busy is None:
                report.overdue_ms = 0
            elif report.overdue_ms > 0:
                is_busy = is_process_busy(child.pid) or are_others_busy()
            sign = Sign(is_stopped, is_busy, report)
            reason = judge.judge(sign, time.monotonic(), must_answer=must_answer)
            if reason is not None:
                return reason
            await asyncio.sleep(LOOK_INTERVAL_S)


async def wait_for_router_hang(child: ChildProcess, base_url: str, silence_s: float = ROUTER_SILENCE_S) -> str:
    """Return why the router hangs, once it does: stopped by a signal, or without an answer for `silence_s`."""
    answered_s = looked_s = time.monotonic()
    num_stopped = 0
    async with httpx.AsyncClient(base_url=base_url, timeout=silence_s, trust_env=False, verify=False) as client:
        while True:
            num_stopped = num_stopped + 1 if is_process_stopped(child.pid) else 0
            if num_stopped >= NUM_LOOKS:
                return _IS_STOPPED
            if not num_stopped:
                with contextlib.suppress(httpx.TransportError, TimeoutError):
                    async with asyncio.timeout(HEALTH_TIMEOUT_S):
                        await client.get("/health/live")  # any status tells that the event loop turns
                        answered_s = time.monotonic()
            now_s = time.monotonic()
            if now_s - looked_s > HEALTH_TIMEOUT_S + 2 * ROUTER_LOOK_INTERVAL_S:
                answered_s = now_s  # the launcher itself did not run
            looked_s = now_s
            if now_s - answered_s > silence_s:
                return f"has not answered /health/live for {now_s - answered_s:.1f} s"
            await asyncio.sleep(LOOK_INTERVAL_S if num_stopped else ROUTER_LOOK_INTERVAL_S)


async def _ask(stub: "shard_pb2_grpc.ShardStub") -> shard_pb2.HealthReport | None:
    try:
        report: shard_pb2.HealthReport = await stub.Health(shard_pb2.HealthRequest(), timeout=HEALTH_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return None
    return report


def is_process_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process. False on systems without /proc."""
    return _state(Path(f"/proc/{pid}/stat")) == _STOPPED


def is_process_busy(pid: int) -> bool:
    """Whether a thread of the process computes, or waits for a processor or a disk. False on systems without /proc."""
    return any(_state(stat) in _BUSY for stat in Path(f"/proc/{pid}/task").glob("*/stat"))


def _state(stat: Path) -> str:
    """Return the letter of the state of a process or thread, or an empty string for one that is gone."""
    try:
        return stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
