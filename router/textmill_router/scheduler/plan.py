"""What the router tells the shard (`Plan`) and what a step brings back (`StepResult`): rules in docs/wire.md."""

from array import array
from dataclasses import dataclass

from textmill_router.request import (
    BlockId,
    FailureCode,
    GenerationRequest,
    PromptLogprobs,
    RequestId,
    Slot,
    TopTokens,
)


@dataclass(frozen=True, slots=True)
class Drop:
    """Ends a slot; a no-op when that occupant is gone (rule 5)."""

    slot: Slot
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Extend:
    """Appends blocks to a slot's table; a no-op when that occupant is gone (rule 5)."""

    slot: Slot
    request_id: RequestId
    block_ids: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class Admit:
    """Seats a request; all state of the slot follows from the request and from what the epoch decides (rule 18)."""

    request: GenerationRequest
    slot: Slot
    output_ids: "array[int]"  # sampled before, on re-admission
    num_cached_tokens: int  # smaller than prompt + output; multiple of the block size unless places are copied
    block_ids: tuple[BlockId, ...]
    prompt_logprobs_from: int | None = None  # first prompt position wanted; None = none (rule 17)
    is_long_rope: bool = False  # it takes the long rotary table (ShardPool.rope_border)
    copied_block_id: BlockId | None = None  # has the places of the last cached tokens, which do not fill a block

    @property
    def request_id(self) -> RequestId:
        """The occupant, as in `Drop` and `Extend`."""
        return self.request.request_id


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a step, in tokens."""

    max_step_tokens: int
    max_prefill_tokens: int
    max_chunk_tokens: int  # per request, first pass over the prefills


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes, applied whole at a step boundary: drops, extends, admits, budget (rule 1)."""

    number: int
    drops: tuple[Drop, ...] = ()
    extends: tuple[Extend, ...] = ()
    admits: tuple[Admit, ...] = ()
    budget: Budget | None = None


FLAG_FINISHED = 1
FLAG_LENGTH = 2
FLAG_EOS = 4
FLAG_STOP_ID = 8


@dataclass(frozen=True, slots=True)
class SlotError:
    """A slot that failed; its occupant is gone (rule 19)."""

    slot: Slot
    request_id: RequestId
    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class SlotPromptLogprobs:
    """A piece of the prompt log-probabilities of one slot (rule 17)."""

    slot: Slot
    request_id: RequestId
    piece: PromptLogprobs


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step as the shard reports it. `slots`, `tokens`, `flags` are parallel; so are the two prefill arrays.

    `prefill_computed` counts all tokens of the request whose K and V are stored. A row that sampled has K and V for all
    its tokens but the sampled one (rule 9). `step` is 0 for a result that only acknowledges a plan.
    """

    step: int
    plan_applied: int
    slots: "array[int]"
    tokens: "array[int]"
    flags: bytes
    prefill_slots: "array[int]"
    prefill_computed: "array[int]"
    starved_slots: "array[int]"
    errors: tuple[SlotError, ...] = ()
    logprobs: "array[float] | None" = None  # parallel to slots, NaN = not asked
    top_tokens: "dict[int, TopTokens] | None" = None  # row index -> alternatives
    prompt_logprobs: tuple[SlotPromptLogprobs, ...] = ()
    step_s: float = 0.0
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardPool:
    """What a Hello says of the seats and the memory behind an epoch."""

    epoch: int
    num_slots: int
    num_blocks: int
    block_size: int  # tokens
    max_step_tokens: int
    rope_border: int = 0  # requests of more tokens, prompt and output, take the long rotary table; 0 = there is one
    can_share_prefixes: bool = True  # False: what blocks hold is not all that a request's past is (state rows)
