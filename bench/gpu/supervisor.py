"""Runs the lanes of a plan in processes, and keeps what they tell when one of them fails, crashes or hangs.

An illegal access to memory leaves a process of CUDA with errors alone, and a kernel that does not end can be ended with
its process only. Therefore a part that breaks its process loses itself or one of its items, and a new process goes on.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO

from bench.gpu.messages import BROKEN, END, FAILED, ITEM, LEFT_OUT, NOT_RUN, PART, RATES, REFUSED, ROW, Job, Told
from bench.gpu.plan import DRY_FACTOR, Lane, Part, Plan
from bench.gpu.report import Report, Row

REPORT_S = 2.0  # kept for the report
START_LIMIT_S = 180.0  # of a process, until its first part begins: torch may come from a slow disk
STOP_LIMIT_S = 3.0  # from the request to end until the process is killed
MAX_BREAKS = 3  # items of a part that may break a process
REPOSITORY = Path(__file__).parents[2]
ROOMS = ("proto", "router", "shard", "launcher")
SHOWN_LINES = 3  # of the log, in a reason


class Refused(Exception):
    """The benchmark cannot run on this machine; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is the same for all processes of a run."""

    table: str
    is_dry: bool
    ends_at: float  # time.monotonic()
    trace_file: Path
    least_left_s: float = 15.0  # with less time than this left no process is started

    @property
    def left_s(self) -> float:
        return self.ends_at - REPORT_S - time.monotonic()


class Supervisor:
    """Runs a plan. `close` ends all processes, also from another thread or a signal."""

    def __init__(self, run: Run, report: Report, log_file: Path, say: Callable[[str], None]) -> None:
        """`say` gets a line for each part that ends."""
        self._say = say
        self._run = run
        self._report = report
        self._log_file = log_file
        self._lock = threading.Lock()
        self._rates: dict[str, float] = {}
        self._refusal: str | None = None
        self._children: list[_Child] = []
        self._is_closing = False

    def run(self, plan: Plan) -> None:
        """Run the lanes of one stage after the other. Raises Refused."""
        for stage in plan.stages:
            with ThreadPoolExecutor(plan.width, "lane") as pool:
                try:
                    for lane in [pool.submit(self._run_lane, lane) for lane in stage]:
                        lane.result()
                except BaseException:  # a signal too: without this the pool would wait for the ends of the lanes
                    self.close()
                    raise
            if self._refusal is not None:
                raise Refused(self._refusal)

    def close(self) -> None:
        with self._lock:
            self._is_closing = True
            children = list(self._children)
        for child in children:
            child.stop()

    def _run_lane(self, lane: Lane) -> None:
        state = _LaneState(list(lane.parts), self._say)
        while state.left and not self._is_closing and self._refusal is None:
            if self._run.left_s < self._run.least_left_s and not self._run.is_dry:
                for part in state.left:
                    self._report.skip(part.name, f"left out, {self._run.left_s:.0f} s before the end")
                return
            job = Job(
                table=self._run.table,
                is_dry=self._run.is_dry,
                left_s=self._run.left_s,
                parts=tuple(part.name for part in state.left),
                trace_file=str(self._run.trace_file),
                number=lane.number,
                of=lane.of,
                done=tuple(state.done),
                rates=self._rates,
            )
            with tempfile.TemporaryFile() as log:
                child = _Child(job, log)
                with self._lock:
                    self._children.append(child)
                    if self._is_closing:
                        child.stop()
                try:
                    reason = self._follow(child, state)
                finally:
                    child.stop()
                    with self._lock:
                        self._children.remove(child)
                        self._keep_log(job, log)
                if reason is not None and not self._is_closing:
                    can_go_on = self._run.is_dry or self._run.left_s > self._run.least_left_s
                    state.lose(f"{reason}{_end_of(log)}", self._report, can_go_on=can_go_on)

    def _follow(self, child: "_Child", state: "_LaneState") -> str | None:
        """Note what a process tells, until it ends or takes too long. Returns the reason where it did not end well."""
        start_limit_s = START_LIMIT_S * (DRY_FACTOR if self._run.is_dry else 1)
        deadline = time.monotonic() + start_limit_s
        while True:
            ends_at = deadline if self._run.is_dry else min(deadline, self._run.ends_at - REPORT_S)
            told = child.next(ends_at - time.monotonic())
            if told is _Silence.TOO_LONG:
                if ends_at < deadline:  # the run is over
                    return "cut off by the budget"
                child.show_stack()
                return f"took too long: {state.said}, and was killed"
            if told is _Silence.END:
                code = child.wait()
                return f"the process ended with {_named(code)}" if code or state.left else None
            if told.kind == REFUSED:
                self._refusal = told.text
                state.left.clear()
                return None
            if told.kind == RATES:
                self._rates.update(told.rates)
            elif told.kind == BROKEN:
                return told.text
            else:
                state.note(told, self._report)
            deadline = state.deadline or time.monotonic() + start_limit_s

    def _keep_log(self, job: Job, log: IO[bytes]) -> None:
        log.seek(0)
        text = log.read()
        if text:
            with self._log_file.open("ab") as file:
                file.write(f"== {', '.join(job.parts)} ({job.number + 1} of {job.of})\n".encode() + text + b"\n")


@dataclass(slots=True)
class _LaneState:
    """How far a lane has come."""

    left: list[Part]  # the part under way is the first
    say: Callable[[str], None]
    done: list[str] = field(default_factory=list)  # items
    item: str | None = None  # under way
    part_began: float | None = None  # time.monotonic(); None: no part is under way
    item_began: float | None = None
    num_breaks: int = 0

    @property
    def deadline(self) -> float | None:
        """The time at which the part or its item has taken too long."""
        if self.part_began is None:
            return None
        part_ends = self.part_began + self.left[0].limit_s
        limit_s = self.left[0].item_limit_s
        return part_ends if limit_s is None or self.item_began is None else min(part_ends, self.item_began + limit_s)

    @property
    def said(self) -> str:
        if self.part_began is None:
            return "the start of the process"
        taken_s = time.monotonic() - (self.item_began or self.part_began)
        return f"{self.item or self.left[0].name} has run for {taken_s:.0f} s"

    def note(self, told: Told, report: Report) -> None:
        if told.kind == PART:
            # A part that goes on in a new process keeps its first beginning, so that breaks cost its own time.
            self.part_began = self.part_began or time.monotonic()
            self.item, self.item_began = None, None
        elif told.kind == ITEM:
            self._end_item()
            self.item, self.item_began = told.text, time.monotonic()
        elif told.kind == ROW:
            assert told.row is not None
            report.add(self.left[0].name, told.row)
        elif told.kind == LEFT_OUT:
            self._end_part(report, "left out, because too little time was left")
        elif told.kind == NOT_RUN:
            self._end_part(report, f"not run, because {told.text}")
        elif told.kind == FAILED:
            self._end_part(report, f"failed: {told.text}")
        elif told.kind == END:
            self._end_part(report, None)
        report.write()

    def lose(self, reason: str, report: Report, *, can_go_on: bool) -> None:
        """Give up the item under way, or else the part, because the process is gone."""
        if not self.left:
            return
        part = self.left[0]
        has_time = self.part_began is not None and time.monotonic() < self.part_began + part.limit_s
        if self.item is not None and has_time and can_go_on and self.num_breaks < MAX_BREAKS:
            self.num_breaks += 1
            report.add(part.name, Row(self.item, {"failed": reason}, is_fine=False))
            self._end_item()
            self.item, self.item_began = None, None
        else:
            self._end_part(report, reason)
        report.write()

    def _end_item(self) -> None:
        if self.item is not None:
            self.done.append(self.item)

    def _end_part(self, report: Report, reason: str | None) -> None:
        part = self.left.pop(0)
        if reason is not None:
            report.skip(part.name, reason)
        taken = ""
        if self.part_began is not None:
            report.took(part.name, time.monotonic() - self.part_began)
            taken = f" after {time.monotonic() - self.part_began:.0f} s"
        self.say(f"{part.name}: {reason or 'done'}{taken}")
        self.done.clear()
        self.item, self.item_began, self.part_began, self.num_breaks = None, None, None, 0


class _Silence(Enum):
    """Why a process tells nothing."""

    TOO_LONG = "too long"
    END = "end"


class _Child:
    """A process of parts, in a process group of its own."""

    def __init__(self, job: Job, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job.to_line())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # the end of the process tells more
        self._reader = threading.Thread(target=self._read, name="child-lines", daemon=True)
        self._reader.start()

    def next(self, limit_s: float) -> "Told | _Silence":
        """Return what the process tells next."""
        try:
            line = self._lines.get(timeout=max(0.0, limit_s))
        except queue.Empty:
            return _Silence.TOO_LONG
        try:
            return _Silence.END if line is None else Told.of_line(line)
        except (json.JSONDecodeError, TypeError, KeyError):  # cut off in the middle by its end
            return _Silence.END

    def wait(self) -> int:
        """Return the code with which the process ended, 0 for a process that has told all and does not end."""
        try:
            return self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            return 0

    def show_stack(self) -> None:
        """Let the process write to its log where its threads are."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)

    def stop(self) -> None:
        """End the process and its group. A second call does nothing."""
        try:
            self._process.terminate()
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs may hold a killed process
            self._process.wait(STOP_LIMIT_S)
        self._reader.join(STOP_LIMIT_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)


def _environment() -> dict[str, str]:
    """Return the environment of processes that import this checkout, installed or not, and ask the hub for nothing."""
    paths = [REPOSITORY, *(REPOSITORY / room for room in ROOMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "USE_HUB_KERNELS": "NO",
    }


def _named(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f" ({' / '.join(lines[-SHOWN_LINES:])})" if lines else ""
