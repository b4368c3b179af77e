"""One shard of rows as the engine sees it: its phase, its signs of life, and the batches that it computes."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from textmill_proto import PROTOCOL_VERSION

from textmill_router.engine.recovery import Recovery
from textmill_router.engine.row_client import BatchRefused, RowClient
from textmill_router.engine.row_wire import answers_from_proto, batch_to_proto
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_facts import ShardHealth
from textmill_router.engine.status import LOADING_PHASES, EnginePhase, EngineStatus
from textmill_router.engine.wire import WireError
from textmill_router.health.group_watch import GroupSigns
from textmill_router.metrics.histogram import Histogram
from textmill_router.tasks.row_results import BatchAnswers
from textmill_router.tasks.rows import AnyRow
from textmill_router.tasks.task_facts import TaskFacts

log = logging.getLogger(__name__)

STALL_LIMIT_S = 60.0  # a batch that takes longer counts as hung; the shard itself says earlier that a batch is late
# Of files, which may be an hour of speech. The shard notes a sign of life after each part of a file.
FILE_STALL_LIMIT_S = 1800.0
# Facts that may be others after a restart.
_CHANGING_FACTS = ("max_batch_tokens",)


class RowShardMismatch(Exception):
    """The shard does not fit this router. The text has the value wanted and the value found."""


class RowReplica:
    """The owner of one connection. `on_change` is called after each change of status, and when a batch has ended."""

    def __init__(
        self,
        options: ShardClientOptions,
        tokenizer_digest: str,
        recoveries: Histogram,
        *,
        number: int,
        on_change: Callable[[], object],
    ) -> None:
        self.number = number
        self._tokenizer_digest = tokenizer_digest
        self._on_change = on_change
        self._client = RowClient(options)
        self._num_batches = 0
        self._running_since: dict[int, float] = {}  # the time of the start of each batch that is under way
        self.runs_alone = False  # whether the batch under way must have no other beside it
        self.facts: TaskFacts | None = None
        self.status = EngineStatus()
        self.recovery = Recovery(time.monotonic, recoveries)
        self._heard_s = time.monotonic()
        self._is_overdue = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self.status.phase is EnginePhase.READY

    @property
    def num_running(self) -> int:
        """The number of batches that are under way."""
        return len(self._running_since)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.end("the router is stopping")

    def end(self, cause: str) -> None:
        """Stop for good, because of an error or because the shard does not start again."""
        if self._task is not None and not self._task.done() and self._task is not asyncio.current_task():
            self._task.cancel()
        if self.status.phase is not EnginePhase.STOPPED:
            self._set_status(EngineStatus(EnginePhase.STOPPED, 0.0, None, cause))

    def signs(self) -> GroupSigns:
        """Return what is known of the shard's life; cheap enough for every probe."""
        now_s = time.monotonic()
        oldest = min(self._running_since.values(), default=now_s)
        return GroupSigns(
            is_linked=self.is_up,
            silent_s=now_s - self._heard_s,
            stepless_s=now_s - oldest,
            step_limit_s=FILE_STALL_LIMIT_S if self.facts is not None and self.facts.media else STALL_LIMIT_S,
            is_overdue=self._is_overdue,
        )

    def begin_batch(self, *, is_alone: bool) -> int:
        """Return the number of a new batch, which counts as under way from now until `compute` ends.

        `is_alone`: no other batch may begin before that end.
        """
        assert not self.runs_alone
        self._num_batches += 1
        self.runs_alone = is_alone
        self._running_since[self._num_batches] = time.monotonic()
        return self._num_batches

    async def compute(self, number: int, rows: Sequence[AnyRow]) -> BatchAnswers:
        """Return the answer of each row.

        Raises ShardAway, ShardLost, and BatchRefused for a batch that broke the contract.
        """
        try:
            answers = await self._client.send(batch_to_proto(number, rows))
            return answers_from_proto(answers, number, rows)
        except WireError as error:
            raise BatchRefused(str(error)) from error
        finally:
            del self._running_since[number]
            self.runs_alone = False
            self._heard_s = time.monotonic()

    # ---- Calls of the client: the methods of `RowHandler`.

    def on_health(self, health: ShardHealth) -> None:
        self._heard_s = time.monotonic()
        if self.facts is not None or health.is_ready:
            return
        phase = EnginePhase(health.phase) if health.phase in LOADING_PHASES else EnginePhase.STARTING
        self._set_status(
            EngineStatus(phase, health.progress, error=health.detail or None if health.has_failed else None)
        )

    def on_facts(self, facts: TaskFacts) -> None:
        self._check(facts)
        self.facts = facts
        self._is_overdue = False
        self.recovery.end()
        self._set_status(EngineStatus(EnginePhase.READY, 1.0))
        log.info("shard of rows is ready", extra={"replica": self.number, "task": facts.task})

    def on_beat(self, *, is_overdue: bool) -> None:
        self._heard_s = time.monotonic()
        self._is_overdue = is_overdue

    def on_lost(self, reason: str) -> None:
        self.recovery.lose()
        self._set_status(EngineStatus(EnginePhase.LOST, 0.0, None, reason))

    # ---- Inner parts.

    async def _run(self) -> None:
        try:
            await self._client.run(self)
        except Exception as error:
            log.critical("engine stopped", exc_info=not isinstance(error, RowShardMismatch))
            self.end(str(error) or type(error).__name__)

    def _check(self, facts: TaskFacts) -> None:
        """Raise RowShardMismatch for another protocol or tokenizer, or another model than before."""
        if facts.protocol_version != PROTOCOL_VERSION:
            raise RowShardMismatch(f"shard speaks protocol {facts.protocol_version}, router {PROTOCOL_VERSION}")
        if facts.tokenizer_digest and facts.tokenizer_digest != self._tokenizer_digest:
            raise RowShardMismatch(
                f"shard has tokenizer {facts.tokenizer_digest}, router {self._tokenizer_digest}: "
                "start both with the same model folder"
            )
        if self.facts is None:
            return
        for name in TaskFacts.__dataclass_fields__:
            if name not in _CHANGING_FACTS and getattr(self.facts, name) != getattr(facts, name):
                raise RowShardMismatch(
                    f"{name} is {getattr(facts, name)} after a restart, was {getattr(self.facts, name)}"
                )

    def _set_status(self, status: EngineStatus) -> None:
        self.status = status
        self._on_change()
