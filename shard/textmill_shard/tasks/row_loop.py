"""The thread that computes batches, one after the other, and tells the shard's status how far it is."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from textmill_shard.engine.status import ShardStatus
from textmill_shard.tasks.rows import Answer, HeadName, RowAnswers, RowBatch, RowFailure

log = logging.getLogger(__name__)

IDLE_SIGN_S = 0.5  # an idle loop gives a sign of progress this often
MAX_WAITING = 1  # batches beside the batch that runs (rule 27)


class BatchRunner(Protocol):
    """Computes rows: texts (`row_runner.py`) or files (`media_runner.py`)."""

    num_memory_faults: int  # forward passes that ran out of memory

    def run(self, head: HeadName, rows: Sequence[Any], *, on_part: Callable[[int], None]) -> list[Answer | RowFailure]:
        """Return the answers in the order of the rows.

        `on_part` is called before each forward pass, with the tokens of its longest row (0: within the usual time).
        """
        ...


class LoopBusy(Exception):
    """One batch runs and another one waits already."""


class LoopEnded(Exception):
    """The loop stops, and no batch is computed any more."""


class WaitingBatch:
    """A batch on its way through the loop."""

    def __init__(self, batch: RowBatch, rows: Sequence[Any]) -> None:
        self.batch = batch
        self.rows = rows  # as the runner reads them
        self.arrived_ns = time.monotonic_ns()
        self.is_cancelled = False  # set by any thread; a batch whose turn has come is computed all the same
        self.is_done = threading.Event()
        self.answers: RowAnswers | None = None  # None after `is_done`: cancelled, or the loop has ended


class RowLoop:
    """Owns the runner. `submit` and `stop` may be called by any thread, `run` is the body of the loop's own thread."""

    def __init__(self, runner: BatchRunner, status: ShardStatus, *, max_batch_tokens: int) -> None:
        self._runner = runner
        self._status = status
        self._max_batch_tokens = max_batch_tokens
        self._changed = threading.Condition()
        self._waiting: deque[WaitingBatch] = deque()
        self._is_running = False
        self._is_stopping = False
        self._num_batches = 0

    def submit(self, batch: RowBatch, rows: Sequence[Any] | None = None) -> WaitingBatch:
        """Queue a batch, whose files `rows` holds ready to compute. Raises LoopBusy and LoopEnded."""
        waiting = WaitingBatch(batch, batch.rows if rows is None else rows)
        with self._changed:
            if self._is_stopping:
                raise LoopEnded("the shard stops")
            self._drop_cancelled()
            if len(self._waiting) + self._is_running > MAX_WAITING:
                raise LoopBusy("one batch runs and another one waits")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting

    def stop(self) -> None:
        """End the loop after the batch that runs."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Compute batches until `stop`. An exception that is no fault of a row ends the loop and is raised."""
        try:
            while (waiting := self._next()) is not None:
                self._compute(waiting)
        finally:
            with self._changed:
                self._is_stopping = True
                for left in self._waiting:
                    left.is_done.set()

    def _next(self) -> WaitingBatch | None:
        with self._changed:
            self._is_running = False
            while not self._is_stopping:
                self._drop_cancelled()
                self._status.progress.expect()
                if self._waiting:
                    self._is_running = True
                    return self._waiting.popleft()
                self._changed.wait(IDLE_SIGN_S)
            return None

    def _drop_cancelled(self) -> None:
        for left in [each for each in self._waiting if each.is_cancelled]:
            self._waiting.remove(left)
            left.is_done.set()

    def _compute(self, waiting: WaitingBatch) -> None:
        began_ns = time.monotonic_ns()
        self._num_batches += 1
        self._status.begin_step()
        num_faults = self._runner.num_memory_faults
        try:
            answers = self._runner.run(waiting.batch.head, waiting.rows, on_part=self._expect)
        except Exception:
            waiting.is_done.set()
            raise
        for _ in range(self._runner.num_memory_faults - num_faults):
            self._status.report_memory_fault()
        self._status.finish_step(self._num_batches, 0)
        waiting.answers = RowAnswers(
            number=waiting.batch.number,
            head=waiting.batch.head,
            answers=answers,
            audio_seconds=_seconds_of(waiting.rows) or _seconds_of(answers),
            num_tokens=_tokens_of(waiting.rows),
            wait_ns=began_ns - waiting.arrived_ns,
            compute_ns=time.monotonic_ns() - began_ns,
        )
        waiting.is_done.set()

    def _expect(self, num_tokens: int) -> None:
        """Note a sign of progress before a forward pass.

        The limit is that of the largest batch. A single row may be longer, and attention grows with the square.
        """
        ratio = num_tokens / self._max_batch_tokens
        progress = self._status.progress
        progress.expect(max(0.0, ratio * ratio - 1.0) * progress.limit_s if ratio > 1.0 else 0.0)


def _seconds_of(rows: Sequence[Any]) -> list[float]:
    """Return the seconds of audio of each row or answer, 0 for a row that failed; empty for those of another kind."""
    seconds = [float(getattr(row, "seconds", 0.0)) for row in rows]
    return seconds if any(seconds) else []


def _tokens_of(rows: Sequence[Any]) -> list[int]:
    """Return the tokens of each row of strings, 0 for a row that failed; empty for rows of another kind."""
    counts = [int(getattr(row, "num_own_tokens", 0)) for row in rows]
    return counts if any(counts) else []
