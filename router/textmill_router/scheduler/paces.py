"""The two speeds that the scheduler observes."""

from dataclasses import dataclass, field

from textmill_router.scheduler.prefill_speed import PrefillSpeed
from textmill_router.scheduler.queue_pace import QueuePace


@dataclass(frozen=True, slots=True)
class Paces:
    """How fast waiting requests leave the queue, and how fast prompts are read."""

    queue: QueuePace = field(default_factory=QueuePace)
    prefill: PrefillSpeed = field(default_factory=PrefillSpeed)
