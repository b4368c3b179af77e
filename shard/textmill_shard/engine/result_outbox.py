"""Results on their way to the writer of the stream, and their numbers."""

from textmill_shard.engine.session import Session
from textmill_shard.slots.plan import PlanRejection, StepResult


class ResultOutbox:
    """Holds the last result of a step until the next step can compute. The thread of the step loop alone calls it.

    A result wakes the writer of the stream, which takes the GIL as soon as the step loop gives the GIL away. So the
    loop hands over a result when the next step is ready to compute, or when there is no next step. The order of rule 1
    holds, because a held result is handed over before anything else.
    """

    def __init__(self) -> None:
        self.session: Session | None = None  # the slots belong to its epoch
        self.step_number = 0  # of the last step
        self.is_plan_unacknowledged = False  # no result since has told of the last plan
        self._held: StepResult | None = None

    def begin_epoch(self, session: Session | None) -> None:
        """Count the steps of a new epoch, or wait for one where `session` is None. A held result is forgotten."""
        self.session = session
        self.step_number = 0
        self.is_plan_unacknowledged = False
        self._held = None

    def count_step(self) -> int:
        """Return the number of a new step, whose result will tell of the last plan."""
        self.is_plan_unacknowledged = False
        self.step_number += 1
        return self.step_number

    def hold(self, result: StepResult) -> None:
        """Hand over the result before, and hold this one."""
        self.send_held()
        self._held = result

    def send_held(self) -> None:
        """Hand over the held result, if there is one."""
        if self._held is not None and self.session is not None:
            self.session.send(self._held)
        self._held = None

    def send(self, item: StepResult | PlanRejection) -> None:
        """Hand over an item at once, behind the held result."""
        self.send_held()
        assert self.session is not None, "there is nobody to send to"
        self.session.send(item)
