"""What the router tells the shard (`Plan`) and what a step brings back (`StepResult`): rules in docs/wire.md."""

# Arrays of ids are numpy int64 inside the shard; the wire packs them as u32 (server/wire.py).

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from textmill_shard.slots.sampling_params import SamplingParams

IdArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float32]

NO_IDS: IdArray = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Drop:
    """Ends a slot; a no-op when that occupant is gone (rule 5)."""

    slot: int
    request_id: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Appends blocks to a slot's table; a no-op when that occupant is gone (rule 5)."""

    slot: int
    request_id: int
    block_ids: IdArray


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole output of a request must match, in llguidance's dialect of Lark."""

    text: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Seats a request. All state of the slot is a function of this message (rule 18)."""

    request_id: int
    slot: int
    prompt_ids: IdArray
    output_ids: IdArray  # sampled before, on re-admission
    num_cached_tokens: int  # smaller than prompt + output; multiple of the block size unless places are copied
    block_ids: IdArray
    max_new_tokens: int  # output tokens in all, output_ids included
    sampling: SamplingParams  # `end_ids` are still empty: the model's EOS ids are not on the wire
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    prompt_logprobs_from: int | None = None  # first prompt position wanted; None = none (rule 17)
    prompt_top_n_tokens: int = 0
    grammar: Grammar | None = None
    is_long_rope: bool = False  # it takes the long rotary table (ShardFacts.rope_border)
    num_encoder_tokens: int = 0  # first tokens of the prompt, for the encoder; 0 = the model has none
    copied_block_id: int | None = None  # has the places of the last cached tokens, which do not fill a block

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known at admission."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def text_ids(self) -> IdArray:
        """The part of the prompt that the output continues: not what an encoder reads."""
        return self.prompt_ids[self.num_encoder_tokens :]


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


class SlotErrorCode(Enum):
    """Why a slot failed."""

    NOT_FINITE = "not_finite"  # logits held NaN or infinity
    INTERNAL = "internal"  # an exception that concerned this slot only


@dataclass(frozen=True, slots=True)
class SlotError:
    """A slot that failed; its occupant is gone (rule 19)."""

    slot: int
    request_id: int
    code: SlotErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Alternatives of one sampled row, best first. Natural-log probabilities, parallel to ids."""

    row: int
    ids: IdArray
    logprobs: FloatArray


@dataclass(frozen=True, slots=True)
class SlotPromptLogprobs:
    """Log-probabilities of the prompt tokens `start`, `start + 1` ... of one slot (rule 17).

    `top_counts` tells how many of the concatenated alternatives belong to each position; empty when none were asked.
    """

    slot: int
    request_id: int
    start: int
    logprobs: FloatArray
    top_counts: IdArray
    top_ids: IdArray
    top_logprobs: FloatArray


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step as the router is told of it. `slots`, `tokens`, `flags` are parallel; so are the two prefill arrays.

    `step` is 0 for a result that only acknowledges. `logprobs` holds NaN for rows that did not ask, None when none did.
    """

    step: int
    plan_applied: int
    slots: IdArray = field(default_factory=lambda: NO_IDS)
    tokens: IdArray = field(default_factory=lambda: NO_IDS)
    flags: IdArray = field(default_factory=lambda: NO_IDS)
    prefill_slots: IdArray = field(default_factory=lambda: NO_IDS)
    prefill_computed: IdArray = field(default_factory=lambda: NO_IDS)
    starved_slots: IdArray = field(default_factory=lambda: NO_IDS)
    errors: tuple[SlotError, ...] = ()
    logprobs: FloatArray | None = None
    top_tokens: tuple[TopTokens, ...] = ()
    prompt_logprobs: tuple[SlotPromptLogprobs, ...] = ()
    step_ns: int = 0  # composing to tokens on the host
    device_ns: int = 0  # forward pass


@dataclass(frozen=True, slots=True)
class PlanRejection:
    """A plan that broke a rule; none of it was applied and the stream ends (rule 20)."""

    plan: int
    slot: int  # 0 when no slot is concerned
    field: str  # "admits.num_cached_tokens"
    message: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Life sign of the shard, each second."""

    last_step: int  # 0 = none yet
    last_step_age_ms: int
    plan_applied: int


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What this rank holds, as Info and Hello tell it. Sizes in tokens, blocks and bytes as named."""

    model_id: str
    model_sha: str
    model_type: str
    dtype: str
    device: str
    rank: int
    world_size: int
    block_size: int
    num_blocks: int  # the scratch block is not counted
    num_slots: int
    max_step_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_tokens: int  # longest sequence that the positions (of the decoder) allow, 0 = unbounded
    layout: str = "flat"
    features: tuple[str, ...] = ("prefix_cache", "prompt_logprobs")
    tokenizer_digest: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0
    rope_border: int = 0  # requests of more tokens, prompt and output, take the long rotary table; 0 = there is one
    decoder_prompt_ids: tuple[int, ...] = ()  # ids that the decoder begins with; empty = the model has no encoder
    max_encoder_tokens: int = 0  # longest text that the positions of the encoder allow, 0 = unbounded
