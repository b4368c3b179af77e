"""How far the engine is on its way to tokens, for those who submit requests or show the state."""

from dataclasses import dataclass
from enum import StrEnum

from textmill_router.engine.shard_facts import ShardFacts


class EnginePhase(StrEnum):
    """Where the way to tokens stands; `LOADING_PHASES` come before the first epoch, in their order."""

    STARTING = "starting"  # the shard does not answer yet
    CONFIG = "config"
    WEIGHTS = "weights"
    KV_POOL = "kv_pool"
    WARMUP = "warmup"
    READY = "ready"
    LOST = "lost"  # between two epochs: requests are taken and held
    STOPPED = "stopped"


LOADING_PHASES = (
    EnginePhase.STARTING,
    EnginePhase.CONFIG,
    EnginePhase.WEIGHTS,
    EnginePhase.KV_POOL,
    EnginePhase.WARMUP,
)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """`progress` is 0 .. 1 of the phase; `facts` are those of the last Hello; `error` says why it stopped or hangs."""

    phase: EnginePhase = EnginePhase.STARTING
    progress: float = 0.0
    facts: ShardFacts | None = None
    error: str | None = None


class EngineUnavailable(Exception):
    """A request came before the first epoch or after the stop; `status` says which."""

    def __init__(self, status: EngineStatus) -> None:
        super().__init__(status.error or status.phase.value)
        self.status = status
