"""A scheduler whose step results the test writes by hand, with blocks of 4 tokens."""

from array import array
from collections.abc import Sequence

from textmill_router.request import (
    BeamSequence,
    FailureCode,
    GenerationRequest,
    PromptLogprobs,
    RequestId,
    RequestOutput,
    token_array,
)
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import (
    FLAG_FINISHED,
    FLAG_LENGTH,
    Admit,
    Budget,
    Drop,
    Plan,
    ShardPool,
    SlotError,
    SlotPromptLogprobs,
    StepResult,
)
from textmill_router.scheduler.scheduler import Scheduler, StepDecision

BUDGET = Budget(max_step_tokens=64, max_prefill_tokens=64, max_chunk_tokens=64)
ENDED = FLAG_FINISHED | FLAG_LENGTH


def make_pool(*, num_blocks: int = 16, num_slots: int = 4) -> ShardPool:
    return ShardPool(num_slots=num_slots, num_blocks=num_blocks, block_size=4, max_step_tokens=64)


def make_result(
    *,
    applied: int,
    rows: Sequence[tuple[int, int, int]] = (),
    prefills: Sequence[tuple[int, int]] = (),
    starved: Sequence[int] = (),
    errors: Sequence[SlotError] = (),
    pieces: Sequence[SlotPromptLogprobs] = (),
    logprobs: Sequence[float] | None = None,
    found: dict[int, tuple[BeamSequence, ...]] | None = None,
) -> StepResult:
    """Return a result. A row is (slot, token, flags), and a prefill is (slot, tokens computed)."""
    return StepResult(
        step=1 if rows or prefills else 0,
        plan_applied=applied,
        slots=array("I", [row[0] for row in rows]),
        tokens=array("I", [row[1] for row in rows]),
        flags=bytes(row[2] for row in rows),
        prefill_slots=array("I", [slot for slot, _ in prefills]),
        prefill_computed=array("I", [computed for _, computed in prefills]),
        starved_slots=array("I", starved),
        errors=tuple(errors),
        prompt_logprobs=tuple(pieces),
        logprobs=None if logprobs is None else array("d", logprobs),
        found=found,
    )


class Hand:
    """A scheduler in its first epoch, with the plans and outputs that it has given."""

    def __init__(
        self,
        *,
        num_blocks: int = 16,
        num_slots: int = 4,
        budget: Budget = BUDGET,
        ahead: int = 4,
        regrant_below: int = 2,
        max_waiting_requests: int = 100,
        max_waiting_tokens: int = 10_000,
        max_waiting_s: float | None = None,
    ) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(
                budget=budget,
                max_waiting_requests=max_waiting_requests,
                max_waiting_tokens=max_waiting_tokens,
                max_waiting_s=max_waiting_s,
                grant_ahead_tokens=ahead,
                regrant_below_tokens=regrant_below,
            )
        )
        self.plans: list[Plan] = []
        self.outputs: list[RequestOutput] = []
        self._num_requests = 0
        self._num_epochs = 0
        self.begin(num_blocks=num_blocks, num_slots=num_slots)

    def begin(self, *, num_blocks: int = 16, num_slots: int = 4) -> StepDecision:
        self._num_epochs += 1
        self.plans = []
        return self._keep(
            self.scheduler.begin_epoch(make_pool(num_blocks=num_blocks, num_slots=num_slots), float(self._num_epochs))
        )

    def submit(self, prompt: Sequence[int], *, max_new: int = 8, **wishes: object) -> int:
        self._num_requests += 1
        request = GenerationRequest(
            request_id=RequestId(self._num_requests),
            prompt_ids=token_array(prompt),
            max_new_tokens=max_new,
            arrival_s=float(self._num_requests),
            **wishes,  # type: ignore[arg-type]
        )
        self.scheduler.on_submit(request, float(self._num_requests))
        return self._num_requests

    def tick(self) -> tuple[Plan, ...]:
        plans = self.scheduler.on_tick(100.0)
        self.plans.extend(plans)
        return plans

    def admit(self, prompt: Sequence[int], *, max_new: int = 8, **wishes: object) -> Admit:
        """Submit a request that is admitted at once, and return its admit."""
        request_id = self.submit(prompt, max_new=max_new, **wishes)
        self.tick()
        return self.admit_of(request_id)

    def admit_of(self, request_id: int) -> Admit:
        """Return the last admit of a request in this epoch."""
        return [admit for plan in self.plans for admit in plan.admits if admit.request_id == request_id][-1]

    def is_admitted(self, request_id: int) -> bool:
        return any(admit.request_id == request_id for plan in self.plans for admit in plan.admits)

    @property
    def last_plan(self) -> int:
        return self.plans[-1].number

    def step(
        self,
        rows: Sequence[tuple[int, int, int]] = (),
        *,
        applied: int | None = None,
        prefills: Sequence[tuple[int, int]] = (),
        starved: Sequence[int] = (),
        errors: Sequence[SlotError] = (),
        pieces: Sequence[SlotPromptLogprobs] = (),
        logprobs: Sequence[float] | None = None,
        found: dict[int, tuple[BeamSequence, ...]] | None = None,
    ) -> StepDecision:
        """Give the scheduler one result, by default after all plans, and check that no block is lost."""
        result = make_result(
            applied=self.last_plan if applied is None else applied,
            rows=rows,
            prefills=prefills,
            starved=starved,
            errors=errors,
            pieces=pieces,
            logprobs=logprobs,
            found=found,
        )
        decision = self._keep(self.scheduler.on_step(result, 100.0))
        stats = self.scheduler.stats()
        assert stats.num_free_blocks + stats.num_held_blocks + stats.num_cached_blocks == stats.num_blocks
        self.scheduler.check()
        return decision

    def die(self) -> tuple[RequestOutput, ...]:
        outputs = self.scheduler.end_epoch(50.0)
        self.outputs.extend(outputs)
        return outputs

    def tokens_of(self, request_id: int) -> list[int]:
        return [token for output in self.outputs if output.request_id == request_id for token in output.tokens]

    def _keep(self, decision: StepDecision) -> StepDecision:
        self.plans.extend(decision.plans)
        self.outputs.extend(decision.outputs)
        return decision


def make_error(admit: Admit) -> SlotError:
    return SlotError(admit.slot, admit.request_id, FailureCode.NOT_FINITE, "logits are not finite")


def make_piece(admit: Admit, start: int, logprobs: Sequence[float]) -> SlotPromptLogprobs:
    return SlotPromptLogprobs(admit.slot, admit.request_id, PromptLogprobs(start=start, logprobs=array("d", logprobs)))


def preempted(hand: Hand, **wishes: object) -> tuple[int, int]:
    """Run two requests until the plan that extends the first preempts the second. Return their ids.

    `wishes` are fields of the second request.
    """
    first = hand.admit([1, 2, 3, 4], max_new=20)
    second = hand.admit([5, 6, 7, 8], max_new=20, **wishes)
    for token in range(10, 30):
        decision = hand.step([(first.slot, token, 0), (second.slot, token, 0)])
        drops = [drop for plan in decision.plans for drop in plan.drops]
        if drops:
            assert drops == [Drop(second.slot, second.request_id)]
            return int(first.request_id), int(second.request_id)
    raise AssertionError("nobody was preempted")
