"""A generation request as the scheduler sees it: ids and numbers, no text."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

from textmill_router.bounds import MAX_I32, MAX_U32, real, whole
from textmill_router.media.media_item import MediaItem, MediaSpan

RequestId = NewType("RequestId", int)
Slot = NewType("Slot", int)
BlockId = NewType("BlockId", int)


def token_array(ids: Sequence[int]) -> "array[int]":
    """Pack token ids as unsigned 32-bit integers, the form in which they are kept, hashed and sent."""
    return array("I", ids)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is drawn. The fields are those of `Sampling` in shard.proto.

    A field with bounds is a row of the table of parameters. Its value comes from the field of that name in the bodies
    that have one, and the rows are checked in the order in which they stand here.
    """

    do_sample: bool = False
    temperature: float = real(low=0, off=1.0, note="0 is greedy", asks_to_sample=True)
    repetition_penalty: float = real(low=0, excludes_low=True, off=1.0)  # of prompt and output tokens
    frequency_penalty: float = real(low=-2, high=2, off=0.0)  # of output tokens, for each occurrence of a token
    presence_penalty: float = real(low=-2, high=2, off=0.0)  # of output tokens
    top_p: float = real(low=0, excludes_low=True, high=1, off=1.0, asks_to_sample=True)
    typical_p: float = real(low=0, excludes_low=True, high=1, off=1.0, asks_to_sample=True)
    top_k: int = whole(low=1, high=MAX_I32, off=0, asks_to_sample=True)
    min_p: float = real(low=0, high=1, excludes_high=True, off=0.0)
    dry_multiplier: float = real(low=0, high=100, off=0.0)  # prompt and output tokens
    dry_base: float = real(low=1, off=1.75, note="1.75 unless given")
    dry_allowed_length: int = whole(low=1, high=MAX_U32, off=2)  # tokens
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    dry_breaker_ids: tuple[int, ...] = ()  # of `GenerationParameters.dry_sequence_breakers`
    allowed_ids: tuple[int, ...] = ()  # the only ids that the output may have; empty: every id
    bad_sequences: tuple[tuple[int, ...], ...] = ()  # no empty one; the output has none of these sequences
    no_repeat_ngram_size: int = 0  # tokens in a row that stand in the text once at most; 0 = off
    encoder_no_repeat_ngram_size: int = 0  # tokens in a row of the encoder's text that the output has not; 0 = off
    forced_first_ids: tuple[int, ...] = ()  # the only ids of the first output token; empty: every id
    forced_last_ids: tuple[int, ...] = ()  # the only ids of output token `max_new_tokens`; empty: every id


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that the whole output of a request must match, in llguidance's dialect of Lark.

    `grammar/compiler.py` compiles the text before the request is admitted; the shard gets the text as it stands.
    """

    text: str


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """The parameters that decide which tokens a request gets.

    `check_parameters` of `serving/validation.py` checks them once, and `engine/wire.py` sends them.
    """

    sampling: SamplingParameters = SamplingParameters()
    min_new_tokens: int = 0
    ignore_eos: bool = False
    grammar: Grammar | None = None
    watermark: bool = False
    dry_sequence_breakers: tuple[str, ...] = ()  # `make_request` of `serving/prompts.py` makes ids of them


class EarlyStopping(Enum):
    """When a search by beams may end before its longest sequences."""

    NO = "no"  # the best unfinished sequence, at its length now, scores less than each finished one
    YES = "yes"  # `num_beams` sequences are finished
    NEVER = "never"  # no unfinished sequence, at its most favourable length, could score better


@dataclass(frozen=True, slots=True)
class Beams:
    """A search for the sequences with the best sum of log-probabilities (rule 34). The fields are those of `Beams`
    in shard.proto.
    """

    num_beams: int  # sequences that are continued beside each other, at least 2
    num_sequences: int  # finished sequences to answer with
    length_penalty: float  # a finished sequence of n tokens scores its sum / n^length_penalty
    early_stopping: EarlyStopping
    max_ms: int = 0  # milliseconds after which each sequence counts as finished, 0 = no limit

    def num_blocks(self, num_prompt_tokens: int, max_new_tokens: int, block_size: int) -> int:
        """Return the blocks of the search: the full ones of the prompt, and the further ones of each sequence."""
        num_shared = num_prompt_tokens // block_size
        num_of_one = -(-(num_prompt_tokens + max_new_tokens - 1) // block_size)
        return num_shared + self.num_beams * (num_of_one - num_shared)


@dataclass(frozen=True, slots=True)
class BeamSequence:
    """A sequence that a search found: its output ids, and the score by which the sequences are in order."""

    ids: "array[int]"
    score: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the requests of a call stand beside those of others.

    A smaller priority goes first. Among equal priorities callers get tokens by their weights.
    """

    caller: str = ""  # name of the API key, "" on a server without keys
    weight: float = 1.0
    priority: int = 0


EQUAL = Standing()


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter of a call, whose requests run with the weights of `digest` for their whole life.

    `name` is the name by which the call asked for the weights. It counts in answers, metrics and logs only, because a
    name may stand for other weights later.
    """

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, checked and tokenised, which fits the KV pool alone.

    `max_new_tokens` is the limit of all output tokens, and `len(prompt_ids) + max_new_tokens` is at most the window.
    `arrival_s` is on the clock that the engine loop hands to the scheduler. Requests share prefixes only with requests
    of an equal `cache_salt`. Where a model has an encoder, `prompt_ids` holds the tokens that the encoder reads and
    then the decoder's own first tokens.
    """

    request_id: RequestId
    prompt_ids: "array[int]"
    max_new_tokens: int
    arrival_s: float
    parameters: GenerationParameters = GenerationParameters()
    stop_ids: tuple[int, ...] = ()
    wants_logprobs: bool = False
    top_n_tokens: int = 0
    wants_prompt_logprobs: bool = False
    prompt_top_n_tokens: int = 0
    standing: Standing = EQUAL
    deadline_s: float | None = None  # without a first token by then the request fails; on the clock of `arrival_s`
    cache_salt: bytes = b""
    num_encoder_tokens: int = 0  # first tokens of the prompt, for the encoder; 0 = the model has none
    adapter_digest: bytes = b""  # 16 bytes that name a loaded adapter (rule 23); empty = the base model
    shares_prompt_of: RequestId | None = None  # the leader: this request waits until the leader has a token or ends
    adapter_name: str = ""  # by which the call asked for the adapter, for metrics; empty = the base model
    media: tuple[MediaItem, ...] = ()  # the images of the prompt, whose spans do not overlap
    beams: Beams | None = None  # search the output by beams, with one output at the end

    @property
    def priority(self) -> int:
        """The priority of the request's call."""
        return self.standing.priority

    @property
    def num_input_tokens(self) -> int:
        """The number of tokens that the client sent, without the decoder's own first tokens."""
        return self.num_encoder_tokens or len(self.prompt_ids)

    @property
    def media_spans(self) -> tuple[MediaSpan, ...]:
        """The spans of all images, in the order of the prompt."""
        return tuple(sorted((span for item in self.media for span in item.spans), key=lambda span: span.start))

    @property
    def text_ids(self) -> "array[int]":
        """The part of the prompt that the output continues."""
        return self.prompt_ids[self.num_encoder_tokens :] if self.num_encoder_tokens else self.prompt_ids

    def takes_long_rope(self, rope_border: int) -> bool:
        """Whether this request takes the long rotary table of a model that has two tables.

        A `rope_border` of 0 means that the model has one table. The most tokens that the request may come to decide,
        because the table may not change while the text grows.
        """
        return 0 < rope_border < len(self.prompt_ids) + self.max_new_tokens


class FinishReason(Enum):
    """Why a request ended. The shard finds all reasons but the stop string, which the router finds."""

    LENGTH = "length"
    EOS = "eos"
    STOP_ID = "stop_id"
    STOP_STRING = "stop_string"


class FailureCode(Enum):
    """Why a request failed after admission."""

    NOT_FINITE = "not_finite"  # logits held NaN or infinity
    INTERNAL = "internal"  # an exception that concerned this request only
    PLAN_REJECTED = "plan_rejected"  # rule 20: the shard refused the plan that admitted the request
    MEDIA = "media"  # rule 33: an image of the request cannot be made, sent or computed
    ADAPTER_LOST = "adapter_lost"  # rule 23: a shard that started again could not load the request's adapter
    SUSPECT = "suspect"  # rule 22: the shard died while this suspect was alone in prefill
    LATE = "late"  # the request could not be, or was not, on time (`deadline_s`)
    SHUTDOWN = "shutdown"  # the router is stopping


@dataclass(frozen=True, slots=True)
class Failure:
    """A fault that ended one request; `message` is for the client."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The most probable tokens at one position, best first. Tokens that tie with the last one are all present.

    `logprobs` holds natural logarithms of probabilities, parallel to `ids`.
    """

    ids: "array[int]"
    logprobs: "array[float]"


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt tokens `start`, `start + 1` ...

    `top` is empty when the request asked for no alternatives.
    """

    start: int
    logprobs: "array[float]"
    top: tuple[TopTokens, ...] = ()


@dataclass(slots=True, eq=False)
class Effort:
    """What a request has cost so far. The scheduler writes; every output of the request carries this one object."""

    num_cached_tokens: int = 0  # prompt tokens found by prefix at first admission
    admitted_s: float = (
        -1.0
    )  # time at which the request first left the queue, on the scheduler's clock; negative before
    num_preemptions: int = 0
    num_chunk_steps: int = 0  # steps that computed a part of a prompt and gave no token


NO_EFFORT = Effort(admitted_s=0.0)


@dataclass(slots=True)
class RequestOutput:
    """The news of one step for one request. The tokens all count, because tokens of leaving requests are left out.

    A prefill chunk with prompt log-probabilities has no token. The last output of a request has `finish` or `failure`.
    The tokens of a search by beams say only that the search goes on.
    """

    request_id: RequestId
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # parallel to tokens; empty unless the request asked
    top_tokens: tuple[TopTokens, ...] = ()  # parallel to tokens; empty unless the request asked
    prompt_logprobs: PromptLogprobs | None = None
    finish: FinishReason | None = None
    failure: Failure | None = None
    effort: Effort = NO_EFFORT
    sequences: tuple[BeamSequence, ...] = ()  # of a search that has finished, best first


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """When the phases of one request ended, on the clock of `time.monotonic`; None: not yet, or nobody can tell."""

    arrival_s: float
    admitted_s: float | None = None  # the request first left the queue
    first_token_s: float | None = None
    end_s: float | None = None  # the last token


class OutputSink(Protocol):
    """The reader of one request's tokens. The engine loop calls the reader in its own thread, so it must not block.

    A reader that raises gets a failure instead of further outputs.
    """

    def on_output(self, output: RequestOutput) -> None: ...
