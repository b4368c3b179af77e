"""Writes the plans of one epoch as messages. A request that no message can hold fails alone."""

import logging
from dataclasses import replace

from textmill_proto.v1 import shard_pb2

from textmill_router.engine.wire import admit_to_proto, plan_to_proto
from textmill_router.request import FailureCode, RequestId, Slot
from textmill_router.scheduler.plan import Admit, Plan, SlotError, StepResult

log = logging.getLogger(__name__)


class PlanWriter:
    """The writer of the plans of one epoch, and the owner of the admits that could not be written.

    An admit that cannot be written, such as one with a number that its field does not hold, is left out of its plan.
    The shard then knows nothing of the request. `add_failures` reports the request as if the shard had ended its slot
    right after the plan (rule 19), because the scheduler then frees the slot and the blocks, and the others go on.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._failures: dict[tuple[Slot, RequestId], tuple[int, SlotError]] = {}  # with the number of the plan

    def write(self, plan: Plan) -> shard_pb2.ToShard:
        """Return the message of a plan. Raises any exception where the plan cannot be written even without admits."""
        if self._failures:
            for drop in plan.drops:  # the acknowledgement of the drop frees the slot
                self._failures.pop((drop.slot, drop.request_id), None)
        try:
            return plan_to_proto(plan, self._epoch)
        except Exception:
            written = tuple(admit for admit in plan.admits if self._can_be_written(admit, plan.number))
            return plan_to_proto(replace(plan, admits=written), self._epoch)

    def add_failures(self, result: StepResult) -> StepResult:
        """Return the result with the errors of the admits that its plans lacked. Call in the order of the results."""
        if not self._failures:
            return result
        due = [key for key, (number, _) in self._failures.items() if number <= result.plan_applied]
        return replace(result, errors=(*result.errors, *(self._failures.pop(key)[1] for key in due)))

    def _can_be_written(self, admit: Admit, plan_number: int) -> bool:
        try:
            admit_to_proto(admit)
        except Exception as error:
            log.exception("a request cannot be written to the shard", extra={"request_id": admit.request_id})
            message = f"the request cannot be written to the shard: {error}"
            failure = SlotError(admit.slot, admit.request_id, FailureCode.INTERNAL, message)
            self._failures[admit.slot, admit.request_id] = plan_number, failure
            return False
        return True
