"""Joins calls, the queue of rows and the shards. The engine alone owns the queue.

Everything runs in one asyncio loop. A batch is formed when a shard is free, so that all rows that have come until then
can be in the batch. While a shard computes, a second batch is sent ahead only if the waiting rows fill a batch.

A row may end the process of the shard. All rows that a lost shard had are suspects, and run again one by one, with
nothing beside them in their shard. So the second loss names the row that is guilty, and only the call of that row fails
(rule 32 in docs/wire.md).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from textmill_router.engine.row_client import BatchRefused, ShardAway, ShardLost
from textmill_router.engine.row_replica import RowReplica
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.status import LOADING_PHASES, EnginePhase, EngineStatus
from textmill_router.health.group_watch import GroupSigns
from textmill_router.metrics.row_metrics import RowMetrics
from textmill_router.tasks.row_queue import BatchLimits, CallNumber, QueuedRow, RowQueue
from textmill_router.tasks.row_results import RowFault, RowResult
from textmill_router.tasks.rows import AnyRow
from textmill_router.tasks.task_facts import TaskFacts

log = logging.getLogger(__name__)

MAX_ROWS = 256  # of a batch
MAX_BATCH_BYTES = 32 << 20  # of files; a message to the shard has at most 64 MiB, and one larger file goes alone
MAX_SENT = 2  # batches: one that runs, and one that waits in the shard (rule 27)


class RowsFailed(Exception):
    """A row of the call has no answer. The text says why, and `index` is that of the row in its call."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class FileRefused(Exception):
    """The file of a row, or with `is_of_text` a text about the file, cannot be read.

    The text says why, and `index` is that of the row in its call.
    """

    def __init__(self, message: str, index: int, *, is_of_text: bool = False) -> None:
        super().__init__(message)
        self.index = index
        self.is_of_text = is_of_text


class EngineEnded(Exception):
    """No shard serves any more."""


@dataclass(slots=True)
class _Call:
    """A call whose rows are under way."""

    results: list[RowResult | None]
    num_missing: int
    done: "asyncio.Future[None]"
    first_sent_s: float = 0.0
    audio_s: float = 0.0
    num_shard_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CallTimes:
    """The seconds until the first row of a call was sent to a shard, and from then to the last answer."""

    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class CallResults:
    """The answers of all rows of a call, in order."""

    rows: list[RowResult]
    times: CallTimes = field(default_factory=lambda: CallTimes(0.0, 0.0))
    audio_s: float = 0.0  # seconds of audio in all rows
    num_shard_tokens: int = 0  # of rows that the tokenizer of the shard reads


class RowEngine:
    """The engine between the HTTP side and the shards of rows, with the calls that the service makes of an engine.

    The owner calls `start`, then `compute` from the same asyncio loop, then `stop`. `max_batch_tokens` narrows the
    limit of the shards. While no batch runs, rows wait `batch_window_s` for more rows. `on_change` is called after each
    change of a status.
    """

    def __init__(
        self,
        client_options: Sequence[ShardClientOptions],
        tokenizer_digest: str,
        *,
        max_batch_tokens: int | None = None,
        batch_window_s: float = 0.0,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._tell = on_change
        self._max_batch_tokens = max_batch_tokens
        self._batch_window_s = batch_window_s
        self._window: asyncio.TimerHandle | None = None  # None while no row waits
        self._is_window_open = False
        self.metrics = RowMetrics()
        self._queue: RowQueue[AnyRow] = RowQueue()
        self._calls: dict[CallNumber, _Call] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._sends: set[asyncio.Task[None]] = set()
        self._is_due = False
        self.replicas = [
            RowReplica(options, tokenizer_digest, self.metrics.recovery, number=number, on_change=self._on_change)
            for number, options in enumerate(client_options)
        ]

    @property
    def status(self) -> EngineStatus:
        """The status of the service: ready while one replica is ready, stopped when all are."""
        return max((replica.status for replica in self.replicas), key=_rank_of)

    @property
    def facts(self) -> TaskFacts | None:
        """The facts of the model, or None before the first shard is ready."""
        return next((replica.facts for replica in self.replicas if replica.facts is not None), None)

    def signs(self) -> list[GroupSigns]:
        """Return what is known of each replica's life, in the order of the replicas' numbers."""
        return [replica.signs() for replica in self.replicas]

    def give_up(self, number: int, cause: str) -> None:
        """End a replica whose shard does not start again."""
        self.replicas[number].end(cause)

    def back_in_s(self) -> float | None:
        """Return the seconds until a replica should serve again, or None where one serves or none has served yet."""
        phases = [replica.status.phase for replica in self.replicas]
        if EnginePhase.READY in phases or EnginePhase.LOST not in phases:
            return None
        return min(
            replica.recovery.remaining_s for replica in self.replicas if replica.status.phase is EnginePhase.LOST
        )

    @property
    def num_waiting(self) -> int:
        """The number of rows that wait for a batch."""
        return len(self._queue)

    @property
    def num_waiting_tokens(self) -> int:
        return 0 if self.facts is not None and self.facts.media else self._queue.size

    async def start(self) -> None:
        """Begin to look for all shards, and return at once."""
        for replica in self.replicas:
            replica.start()

    async def wait_for_phase(self, *phases: EnginePhase) -> EngineStatus:
        """Wait until the status of the engine has one of these phases, and return the status."""
        while (status := self.status).phase not in phases:
            self._changed.clear()
            await self._changed.wait()
        return status

    async def stop(self) -> None:
        """End all connections. Calls that have not ended fail."""
        await asyncio.gather(*(replica.stop() for replica in self.replicas))
        for task in self._sends:
            task.cancel()
        await asyncio.gather(*self._sends, return_exceptions=True)
        self._end_all()

    async def compute(self, rows: Sequence[AnyRow]) -> CallResults:
        """Return the answers of a call's rows, which ask for the same head.

        Rows whose shard is lost are computed again one by one, once. The rows of a batch that the shard refuses are
        computed again one by one. A caller that is cancelled takes its waiting rows back.

        Raises RowsFailed for a row without an answer, FileRefused for a file that cannot be read, and EngineEnded where
        no shard serves any more.
        """
        if self.status.phase is EnginePhase.STOPPED:
            raise EngineEnded(self.status.error or "the engine has stopped")
        number = CallNumber(next(self._numbers))
        call = _Call([None] * len(rows), len(rows), asyncio.get_running_loop().create_future())
        self._calls[number] = call
        began_s = time.monotonic()
        self._queue.add(number, rows[0].head, [(row.size, row) for row in rows])
        self._open_window()
        self._form_soon()
        try:
            await call.done
        finally:
            del self._calls[number]
            self._queue.drop(number)
        ended_s = time.monotonic()
        results = [result for result in call.results if result is not None]
        assert len(results) == len(rows)
        times = CallTimes(call.first_sent_s - began_s, ended_s - call.first_sent_s)
        return CallResults(results, times, call.audio_s, call.num_shard_tokens)

    # ---- Inner parts.

    def _on_change(self) -> None:
        self._changed.set()
        if self.status.phase is EnginePhase.STOPPED:
            self._end_all()
        elif len(self._queue):
            self._form_soon()
        self._tell()

    def _end_all(self) -> None:
        error = EngineEnded(self.status.error or "the engine has stopped")
        for call in self._calls.values():
            if not call.done.done():
                call.done.set_exception(error)

    def _open_window(self) -> None:
        """Let the first row that waits wait for others, if the operator wants that."""
        if self._batch_window_s > 0.0 and self._window is None:
            self._is_window_open = True
            self._window = asyncio.get_running_loop().call_later(self._batch_window_s, self._close_window)

    def _close_window(self) -> None:
        # The flag tells that the window is closed, because a clock may still be short of the window's end here.
        self._is_window_open = False
        self._form_soon()

    def _waits_for_rows(self, limits: BatchLimits) -> bool:
        """Whether the window of the waiting rows is open, and they are no whole batch."""
        return self._is_window_open and not self._queue.fills_batch(limits)

    def _form_soon(self) -> None:
        """Form batches once, after this turn of the loop, for all that the turn submits or brings back."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._form)

    def _form(self) -> None:
        self._is_due = False
        while len(self._queue):
            is_alone = self._queue.has_suspects
            replica = self._free_replica(is_alone=is_alone)
            if replica is None:
                return
            assert replica.facts is not None
            limits = self._limits_of(replica.facts)
            if replica.num_running and not self._queue.fills_batch(limits):
                return
            if not is_alone and self._waits_for_rows(limits):
                return
            batch = self._queue.next_batch(limits)
            task = asyncio.create_task(self._run_batch(replica, replica.begin_batch(is_alone=is_alone), batch))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)
        if self._window is not None:
            self._window.cancel()
            self._window = None
            self._is_window_open = False

    def _free_replica(self, *, is_alone: bool) -> RowReplica | None:
        """Return the replica that has the least to do, or None where each has as many batches as it may have.

        A replica for a suspect has nothing to do.
        """
        most = 1 if is_alone else MAX_SENT
        ready = [
            replica
            for replica in self.replicas
            if replica.is_up and replica.num_running < most and not replica.runs_alone
        ]
        return min(ready, key=lambda replica: replica.num_running, default=None)

    def _limits_of(self, facts: TaskFacts) -> BatchLimits:
        if facts.media:
            return BatchLimits(MAX_BATCH_BYTES, facts.max_batch_files, counts_padding=False)
        tokens = facts.max_batch_tokens
        if self._max_batch_tokens is not None:
            tokens = min(tokens, self._max_batch_tokens)
        return BatchLimits(tokens, MAX_ROWS, counts_padding=facts.counts_padding)

    async def _run_batch(self, replica: RowReplica, number: int, batch: Sequence[QueuedRow[AnyRow]]) -> None:
        began_s = time.monotonic()
        for row in batch:
            call = self._calls.get(row.call)
            if call is not None and not call.first_sent_s:
                call.first_sent_s = began_s
        try:
            answers = await replica.compute(number, [row.content for row in batch])
        except ShardAway:
            self._queue.put_back([row for row in batch if row.call in self._calls])
        except ShardLost as error:
            self._on_lost_batch(batch, str(error))
        except BatchRefused as error:
            log.error("a batch was refused", extra={"reason": str(error), "num_rows": len(batch)})
            self._on_refused_batch(batch, f"the shard refused the row ({error})")
        except Exception as error:  # of the router itself; the callers must not wait for ever
            log.exception("a batch could not be written, or its answer not read", extra={"num_rows": len(batch)})
            reason = str(error) or type(error).__name__
            self._on_refused_batch(batch, f"the row could not be written, or its answer not read ({reason})")
        else:
            num_tokens = sum(row.content.num_tokens for row in batch) + sum(answers.num_tokens)
            self.metrics.on_batch(len(batch), num_tokens, time.monotonic() - began_s)
            for row, audio_s in zip(batch, answers.audio_seconds, strict=False):  # of other rows there are no seconds
                if (call := self._calls.get(row.call)) is not None:
                    call.audio_s += audio_s
            for row, num_own in zip(batch, answers.num_tokens, strict=False):  # of other rows the router knows them
                if (call := self._calls.get(row.call)) is not None:
                    call.num_shard_tokens += num_own
            for row, result in zip(batch, answers.results, strict=True):
                self._deliver(row, result)
        finally:
            if len(self._queue):
                self._form_soon()

    def _on_lost_batch(self, batch: Sequence[QueuedRow[AnyRow]], reason: str) -> None:
        """Let each row of a lost batch run alone. A row that was alone has ended the shard, and fails."""
        again = []
        for row in batch:
            if row.call not in self._calls:
                continue
            if row.is_suspect:
                log.error("a row has ended the shard twice", extra={"reason": reason})
                self._fail(
                    row, f"the shard was lost twice with this row, the second time with this row alone ({reason})"
                )
            else:
                again.append(row)
        self._queue.put_back_suspects(again)
        self.metrics.num_repeated_rows += len(again)

    def _on_refused_batch(self, batch: Sequence[QueuedRow[AnyRow]], message: str) -> None:
        """Let each row of a batch run alone, so that one bad row fails no other. A row that was alone fails."""
        if len(batch) == 1:
            self._fail(batch[0], message)
        else:
            self._queue.put_back_alone([row for row in batch if row.call in self._calls])

    def _deliver(self, row: QueuedRow[AnyRow], result: RowResult | RowFault) -> None:
        call = self._calls.get(row.call)
        if call is None or call.done.done():
            return  # the call has left, or another row of it has failed
        if isinstance(result, RowFault):
            self._end(row, _error_of(result, row.index))
            return
        call.results[row.index] = result
        call.num_missing -= 1
        if not call.num_missing:
            call.done.set_result(None)

    def _fail(self, row: QueuedRow[AnyRow], message: str) -> None:
        self._end(row, RowsFailed(message, row.index))

    def _end(self, row: QueuedRow[AnyRow], error: Exception) -> None:
        """End the call of a row with an error."""
        call = self._calls.get(row.call)
        if call is not None and not call.done.done():
            call.done.set_exception(error)
            self._queue.drop(row.call)


def _error_of(fault: RowFault, index: int) -> Exception:
    if not fault.is_of_client:
        return RowsFailed(fault.message, index)
    return FileRefused(fault.message, index, is_of_text=fault.is_of_text)


def _rank_of(status: EngineStatus) -> tuple[int, int, float]:
    """How far a replica has come; the largest rank is that of the engine."""
    if status.phase is EnginePhase.READY:
        return 3, 0, 0.0
    if status.phase is EnginePhase.LOST:
        return 2, 0, 0.0
    if status.phase in LOADING_PHASES:
        return 1, LOADING_PHASES.index(status.phase), status.progress
    return 0, 0, 0.0
