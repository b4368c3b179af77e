"""The router sends a `Plan` to the shard; the shard answers with a `StepResult` per step (rules in docs/wire.md)."""

from array import array
from dataclasses import dataclass

from textmill_router.request import (
    BeamSequence,
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
    """Ends the occupant of a slot. Does nothing when that occupant is gone (rule 5)."""

    slot: Slot
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Extend:
    """Appends blocks to the table of a slot. Does nothing when that occupant is gone (rule 5)."""

    slot: Slot
    request_id: RequestId
    block_ids: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class Admit:
    """Gives a request a slot. All state of the slot follows from this message (rule 18)."""

    request: GenerationRequest
    slot: Slot
    output_ids: "array[int]"  # sampled before, when the request is admitted again
    num_cached_tokens: int  # smaller than prompt + output; multiple of the block size unless places are copied
    block_ids: tuple[BlockId, ...]
    prompt_logprobs_from: int | None = None  # first prompt position to deliver; None = none (rule 17)
    is_long_rope: bool = False  # the request takes the long rotary table (ShardPool.rope_border)
    copied_block_id: BlockId | None = None  # block with the last cached tokens, which fill no whole block
    caller: int = 0  # number of the caller; the callers share the prefills of the steps (rule 16)
    caller_weight: float = 1.0

    @property
    def request_id(self) -> RequestId:
        """The id that `Drop` and `Extend` name."""
        return self.request.request_id


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a step, in tokens."""

    max_step_tokens: int
    max_prefill_tokens: int
    max_chunk_tokens: int  # per request, first pass over the prefills


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes that the shard applies whole between two steps: drops, extends, admits, then the budget (rule 1)."""

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
    """The failure of a slot. The occupant is gone (rule 19)."""

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

    `prefill_computed` counts the tokens of the request whose K and V are stored. Where a row sampled, K and V of all
    tokens but the sampled one are stored (rule 9). `step` is 0 in a result that only acknowledges a plan.
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
    logprobs: "array[float] | None" = None  # parallel to slots; NaN = the request wants none
    top_tokens: "dict[int, TopTokens] | None" = None  # row index -> alternatives
    prompt_logprobs: tuple[SlotPromptLogprobs, ...] = ()
    step_s: float = 0.0
    device_s: float = 0.0
    found: "dict[int, tuple[BeamSequence, ...]] | None" = None  # slot of a finished search -> sequences, best first


@dataclass(frozen=True, slots=True)
class ShardPool:
    """The slots and the memory of an epoch, as the shard's Hello tells them."""

    num_slots: int
    num_blocks: int
    block_size: int  # tokens
    max_step_tokens: int
    rope_border: int = 0  # requests of more tokens, output included, take the long rotary table; 0 = one table
    can_share_prefixes: bool = True  # False: blocks do not hold a request's whole past (state rows)
    media_cache_bytes: int = 0  # set aside for images; 0 = the model takes none
    media_row_bytes: int = 0
    uncut_spans: bool = False  # a step computes a media span whole (rule 16)
    uncut_prompts: bool = False  # a step computes a prompt whole
