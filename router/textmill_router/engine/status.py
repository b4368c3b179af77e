"""Whether the engine can take requests, and how far its start has come."""

from dataclasses import dataclass
from enum import StrEnum

from textmill_router.engine.shard_facts import ShardFacts


class EnginePhase(StrEnum):
    """The phases of the engine's life. `LOADING_PHASES` come before the first epoch, in their order."""

    STARTING = "starting"  # the shard does not answer yet
    CONFIG = "config"
    WEIGHTS = "weights"
    WARMUP = "warmup"
    KV_POOL = "kv_pool"
    READY = "ready"
    LOST = "lost"  # between two epochs; requests are taken, and wait
    STOPPED = "stopped"


LOADING_PHASES = (
    EnginePhase.STARTING,
    EnginePhase.CONFIG,
    EnginePhase.WEIGHTS,
    EnginePhase.WARMUP,
    EnginePhase.KV_POOL,
)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The phase of the engine, with its progress from 0 to 1, and the facts of the last Hello.

    `error` says why the engine stopped, why the last stream ended, or why the shard's start failed.
    """

    phase: EnginePhase = EnginePhase.STARTING
    progress: float = 0.0
    facts: ShardFacts | None = None
    error: str | None = None


class EngineUnavailable(Exception):
    """A request came before the first epoch or after the stop; `status` says which of the two."""

    def __init__(self, status: EngineStatus) -> None:
        super().__init__(status.error or status.phase.value)
        self.status = status
