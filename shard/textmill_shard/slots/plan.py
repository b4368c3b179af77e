"""The plan that the router sends to the shard, and the result of a step, which goes back (rules in docs/wire.md)."""

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
    """Ends a slot. Does nothing when the slot has another occupant or none (rule 5)."""

    slot: int
    request_id: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Appends blocks to a slot's table. Does nothing when the slot has another occupant or none (rule 5)."""

    slot: int
    request_id: int
    block_ids: IdArray


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that the whole output of a request must match, in llguidance's dialect of Lark."""

    text: str


class EarlyStopping(Enum):
    """When a search by beams may end before its longest sequences."""

    NO = "no"  # the best unfinished sequence, at its length now, scores less than each finished one
    YES = "yes"  # `num_beams` sequences are finished
    NEVER = "never"  # no unfinished sequence, at its most favourable length, could score better


@dataclass(frozen=True, slots=True)
class Beams:
    """A search for the sequences with the best sum of log-probabilities (rule 34)."""

    num_beams: int  # sequences that are continued beside each other
    num_sequences: int  # finished sequences to answer with
    length_penalty: float  # a finished sequence of n tokens scores its sum / n^length_penalty
    early_stopping: EarlyStopping
    max_ms: int = 0  # milliseconds after which each sequence counts as finished, 0 = no limit


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """Placeholder tokens of a prompt in a row, which stand for consecutive rows of one item.

    `start` is the prompt position of the first placeholder, and `first_row` is the row of the item that stands there.
    """

    digest: bytes  # 16 bytes
    start: int
    num_tokens: int
    first_row: int
    grid: tuple[int, ...] = ()  # patches in time, height and width, where positions follow from them

    @property
    def end(self) -> int:
        """The prompt position behind the last placeholder."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Admit:
    """Puts a request into a slot. All state of the slot is a function of this message (rule 18)."""

    request_id: int
    slot: int
    prompt_ids: IdArray
    output_ids: IdArray  # sampled before, when the request is admitted again
    num_cached_tokens: int  # smaller than prompt + output; multiple of the block size unless places are copied
    block_ids: IdArray
    max_new_tokens: int  # output tokens in all, output_ids included
    sampling: SamplingParams  # `end_ids` is still empty, because the model's EOS ids are not on the wire
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    prompt_logprobs_from: int | None = None  # first prompt position wanted; None = none (rule 17)
    prompt_top_n_tokens: int = 0
    grammar: Grammar | None = None
    is_long_rope: bool = False  # the request takes the long rotary table (ShardFacts.rope_border)
    num_encoder_tokens: int = 0  # first tokens of the prompt, for the encoder; 0 = the model has none
    copied_block_id: int | None = None  # block with the last cached tokens, which fill no whole block
    adapter_digest: bytes = b""  # names a loaded adapter (rule 23); empty = the base model
    caller: int = 0  # number of the caller; the callers share the prefills (rule 16)
    caller_weight: float = 1.0  # share of the caller beside that of others, above 0
    media: tuple[MediaSpan, ...] = ()  # spans of the prompt whose embeddings are rows of items (rule 33)
    beams: Beams | None = None  # search the output by beams; `block_ids` then holds the blocks of the whole search

    @property
    def num_tokens(self) -> int:
        """The number of prompt and output tokens known at admission."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def read_ids(self) -> IdArray:
        """The prompt tokens whose own embeddings the model reads, which are all but the placeholders of items."""
        return self.prompt_ids[~self.is_placeholder_P] if self.media else self.prompt_ids

    @property
    def is_placeholder_P(self) -> npt.NDArray[np.bool_]:
        """For each token of the prompt, whether a row of an item stands in the place of its embedding."""
        is_placeholder_P = np.zeros(len(self.prompt_ids), dtype=bool)
        for span in self.media:
            is_placeholder_P[span.start : span.end] = True
        return is_placeholder_P

    @property
    def text_ids(self) -> IdArray:
        """The tokens of text that the output continues: the prompt without the encoder's tokens and placeholders."""
        return self.read_ids[self.num_encoder_tokens :]


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a step, in tokens."""

    max_step_tokens: int
    max_prefill_tokens: int
    max_chunk_tokens: int  # per request, first pass over the prefills


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes in their order: drops, extends, admits, budget. A plan is applied whole, between two steps (rule 1)."""

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
    MEDIA = "media"  # an item of the request is gone, or the tower made no rows of it (rule 33)


@dataclass(frozen=True, slots=True)
class SlotError:
    """A slot that failed; its occupant is gone (rule 19)."""

    slot: int
    request_id: int
    code: SlotErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The most probable tokens of one sampled row, best first. `logprobs` has natural logarithms, parallel to `ids`."""

    row: int
    ids: IdArray
    logprobs: FloatArray


@dataclass(frozen=True, slots=True)
class SlotPromptLogprobs:
    """Log-probabilities of the prompt tokens `start`, `start + 1` ... of one slot (rule 17).

    `top_ids` holds the alternatives of all positions end to end, and `top_counts` their number at each position. Both
    are empty when the request asked for no alternatives.
    """

    slot: int
    request_id: int
    start: int
    logprobs: FloatArray
    top_counts: IdArray
    top_ids: IdArray
    top_logprobs: FloatArray


@dataclass(frozen=True, slots=True)
class FoundSequences:
    """The best sequences of a search by beams that has ended, best first. `scores` is parallel to `sequences`."""

    slot: int
    sequences: tuple[IdArray, ...]
    scores: FloatArray


@dataclass(frozen=True, slots=True)
class StepResult:
    """The news of one step for the router.

    `slots`, `tokens` and `flags` are parallel, and so are `prefill_slots` and `prefill_computed`. `step` is 0 for a
    result that only acknowledges plans. `logprobs` holds NaN for rows that did not ask, and is None when no row asked.
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
    found: tuple[FoundSequences, ...] = ()  # of searches whose rows are flagged as finished
    step_ns: int = 0  # from the choice of the rows until the tokens are on the host
    device_ns: int = 0  # of the forward pass


@dataclass(frozen=True, slots=True)
class PlanRejection:
    """A plan that broke a rule. No part of the plan was applied, and the stream ends (rule 20)."""

    plan: int
    slot: int  # 0 when no slot is concerned
    field: str  # for example "admits.num_cached_tokens"
    message: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The sign of life that the shard sends each second."""

    last_step: int  # 0 = none yet
    last_step_age_ms: int
    plan_applied: int
    overdue_ms: int = 0  # by so much the step loop is later than it may be; 0 = on time
    num_memory_faults: int = 0  # steps, and parts of steps, that ran out of memory since the process began
    media_bytes: int = 0  # of the items that are kept
    num_media_encodes: int = 0  # items of which the tower made rows since the process began


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """The facts of this rank for Info and Hello. The names of the sizes have the units: tokens, blocks or bytes."""

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
    max_model_tokens: int  # longest sequence that the positions of the decoder allow, 0 = unbounded
    layout: str = "flat"
    features: tuple[str, ...] = ("prefix_cache", "prompt_logprobs")
    tokenizer_digest: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0
    rope_border: int = 0  # requests of more tokens, prompt and output, take the long rotary table; 0 = only one table
    decoder_prompt_ids: tuple[int, ...] = ()  # ids that the decoder begins with; empty = the model has no encoder
    max_encoder_tokens: int = 0  # longest text that the positions of the encoder allow, 0 = unbounded
    adapter_bytes: int = 0  # set aside for adapters; 0 = this shard loads none
    max_adapter_rank: int = 0
    adapter_digests: tuple[bytes, ...] = ()  # of the adapters that are loaded
    media_kinds: tuple[str, ...] = ()  # kinds of items that prompts may hold; empty = text only
    media_cache_bytes: int = 0  # set aside for items; 0 = the model takes none
    media_row_bytes: int = 0  # of one row, with the rows for deeper layers
    uncut_spans: bool = False  # the tokens of a span see one another: a span is computed whole (rule 16)
    uncut_prompts: bool = False  # the tokens of a prompt see one another: a prompt is computed whole (rule 16)
    kv_dtype: str = ""  # type of keys and values, "fp8_e4m3fn" among them; empty = they have none
