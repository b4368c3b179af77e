"""The watchdog of a group of shards: what the engine last heard of the group says whether the group is away."""

from dataclasses import dataclass

# A shard that served once and says nothing for so long is given up. Its process may take that long to start again,
# because the imports of a cold machine take most of a minute and the pause between two tries grows.
MAX_SILENCE_S = 120.0
# A step that takes longer has never been seen; the collective operation of a hung rank gives up after the same time.
MAX_STEP_S = 600.0


@dataclass(frozen=True, slots=True)
class GroupSigns:
    """What the engine knows of one group of shards.

    `is_linked` says that a stream to the group is live. `silent_s` are the seconds since the last message or answer to
    Health, and `stepless_s` those since the last end of a step, or 0 while nothing runs. A step that takes longer than
    `step_limit_s` counts as hung, and so does a step loop that the shard itself calls late (`is_overdue`).
    """

    is_linked: bool
    silent_s: float
    stepless_s: float
    step_limit_s: float
    is_overdue: bool = False

    @property
    def is_away(self) -> bool:
        """Whether the group serves no request now, because it is lost or hangs."""
        return not self.is_linked or self.is_overdue or self.stepless_s > self.step_limit_s

    @property
    def is_given_up(self) -> bool:
        """Whether the group hangs for so long that only a new start helps."""
        return self.silent_s > MAX_SILENCE_S or self.stepless_s > max(MAX_STEP_S, self.step_limit_s)
