"""Chooses who runs: the pure, synchronous heart of the router (rules in docs/wire.md)."""

from dataclasses import dataclass

from textmill_router.plan import Budget, Plan, ShardPool, StepResult
from textmill_router.request import GenerationRequest, RequestId, RequestOutput


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the operator decides. Bounds concern waiting requests only; `*_tokens` are tokens."""

    budget: Budget
    max_waiting_requests: int
    max_waiting_tokens: int
    prefix_caching: bool = True
    grant_ahead_tokens: int = 64
    regrant_below_tokens: int = 32


@dataclass(frozen=True, slots=True)
class StepDecision:
    """`plans` go to the shard first, in order; `outputs` then to the readers. More than one plan only by rule 4."""

    plans: tuple[Plan, ...]
    outputs: tuple[RequestOutput, ...]


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Plain numbers for metrics. Block and slot counts are 0 while no epoch is live; `num_*_total` only grow."""

    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_leaving: int
    num_free_blocks: int
    num_held_blocks: int
    num_cached_blocks: int  # evictable: indexed and held by nobody
    num_blocks: int
    num_free_slots: int
    num_slots: int
    num_preemptions_total: int
    num_starvations_total: int
    num_prefix_hit_tokens_total: int
    num_prefix_lookup_tokens_total: int
    num_prompt_tokens_computed_total: int
    num_output_tokens_total: int
    num_steps_total: int
    num_epochs_total: int


class Scheduler:
    """Owner of queue, slots, blocks and prefix index. One thread calls it; it never waits and has no clock of its own.

    Life: `begin_epoch` - `on_tick` / `on_step` ... - `end_epoch` - `begin_epoch` ... `on_submit` and `on_cancel` may
    come at any time, also while no epoch is live. Every request gets outputs until one has `finish` or `failure`; after
    `on_cancel` it gets none at all.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config

    def begin_epoch(self, pool: ShardPool, now: float) -> StepDecision:
        """A Hello came. Re-admits what was running, oldest first (rule 22); the first plan always holds the budget.

        Outputs: failures of requests that do not fit a pool that became smaller. Raises `PoolMismatch` when slots
        exceed the tokens of a step (rule 16) or the block size has changed.
        """
        raise NotImplementedError

    def end_epoch(self, now: float) -> tuple[RequestOutput, ...]:
        """The stream is lost. Holds all requests until `begin_epoch`; until then `on_tick` returns no plan.

        Returns the failure of the suspect that was alone in prefill, if there was one (rule 22).
        """
        raise NotImplementedError

    def on_submit(self, request: GenerationRequest, now: float) -> None:
        """Put a request into the queue; it is in the plan of the next `on_tick` or `on_step`. Raises `QueueFull`."""
        raise NotImplementedError

    def on_cancel(self, request_id: RequestId) -> None:
        """End a request wherever it is; unknown or ended ids are ignored. It gets no output from now on."""
        raise NotImplementedError

    def on_step(self, result: StepResult, now: float) -> StepDecision:
        """Read one result, in the order of arrival. Raises `StreamBroken` when it breaks a rule of the stream."""
        raise NotImplementedError

    def on_tick(self, now: float) -> tuple[Plan, ...]:
        """The plans for what was submitted and cancelled since; call once per loop turn."""
        raise NotImplementedError

    def on_plan_rejected(self, plan_number: int, message: str, now: float) -> tuple[RequestOutput, ...]:
        """Rule 20: fail the requests that this plan admitted. Call it before `end_epoch`.

        Raises `PlanRejectedTwice` when the rejection before this one was followed by no finished request.
        """
        raise NotImplementedError

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a request of so many tokens, prompt and output, fits the pool alone. True while no epoch was live."""
        raise NotImplementedError

    def stats(self) -> SchedulerStats:
        """The numbers of this moment."""
        raise NotImplementedError
