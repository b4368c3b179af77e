"""A generation request as the scheduler sees it: ids and numbers, no text."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

from textmill_router.bounds import MAX_U32, real, whole

RequestId = NewType("RequestId", int)
Slot = NewType("Slot", int)
BlockId = NewType("BlockId", int)


def token_array(ids: Sequence[int]) -> "array[int]":
    """Pack token ids as unsigned 32-bit integers, the form in which they are kept, hashed and sent."""
    return array("I", ids)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is drawn; fields as in `Sampling` of shard.proto.

    A number with bounds is a row of the table of parameters: copied from the bodies that have a field of the name, and
    checked in the order in which the rows stand here.
    """

    do_sample: bool = False
    temperature: float = real(low=0, off=1.0, note="0 is greedy", asks_to_sample=True)
    repetition_penalty: float = real(low=0, excludes_low=True, off=1.0)  # prompt and output tokens
    frequency_penalty: float = real(low=-2, high=2, off=0.0)  # output tokens, for each time that a token stands there
    presence_penalty: float = real(low=-2, high=2, off=0.0)  # output tokens
    top_p: float = real(low=0, excludes_low=True, high=1, off=1.0, asks_to_sample=True)
    typical_p: float = real(low=0, excludes_low=True, high=1, off=1.0, asks_to_sample=True)
    top_k: int = whole(low=1, high=MAX_U32, off=0, asks_to_sample=True)
    min_p: float = real(low=0, high=1, excludes_high=True, off=0.0)
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole output of a request must match, in llguidance's dialect of Lark.

    `grammar/compiler.py` compiles the text before the request is admitted; the shard gets the text as it stands.
    """

    text: str


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """The parameters that decide which tokens a request gets.

    Checked once, by `check_parameters` of `serving/validation.py`; sent by `engine/wire.py`.
    """

    sampling: SamplingParameters = SamplingParameters()
    min_new_tokens: int = 0
    ignore_eos: bool = False
    grammar: Grammar | None = None
    watermark: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, checked and tokenised; it fits the pool alone.

    `len(prompt_ids) + max_new_tokens` is at most the window; `max_new_tokens` counts output tokens in all.
    `arrival_s` is on the clock that the engine loop hands to the scheduler. `cache_salt` separates tenants of the
    prefix cache. Where a model has an encoder, `prompt_ids` are what that reads, then the decoder's own first tokens.
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
    priority: int = 0  # smaller goes first
    cache_salt: bytes = b""
    num_encoder_tokens: int = 0  # first tokens of the prompt, for the encoder; 0 = the model has none
    shares_prompt_of: RequestId | None = None  # it waits until that one has computed the prompt, or has ended

    @property
    def num_input_tokens(self) -> int:
        """Tokens of what the client sent: those of the decoder's own beginning are not counted."""
        return self.num_encoder_tokens or len(self.prompt_ids)

    @property
    def text_ids(self) -> "array[int]":
        """The part of the prompt that the output continues."""
        return self.prompt_ids[self.num_encoder_tokens :] if self.num_encoder_tokens else self.prompt_ids

    def takes_long_rope(self, rope_border: int) -> bool:
        """Whether its positions come from the long rotary table of a model that has two (0 = it has one).

        Decided by what it may become, not by what it is: a table may not change under a text.
        """
        return 0 < rope_border < len(self.prompt_ids) + self.max_new_tokens


class FinishReason(Enum):
    """Why a request ended, as the shard or the router's stop strings saw it."""

    LENGTH = "length"
    EOS = "eos"
    STOP_ID = "stop_id"
    STOP_STRING = "stop_string"


class FailureCode(Enum):
    """Why a request failed after admission."""

    NOT_FINITE = "not_finite"  # logits held NaN or infinity
    INTERNAL = "internal"  # an exception that concerned this request only
    PLAN_REJECTED = "plan_rejected"  # rule 20: admitted by a plan that the shard refused
    SUSPECT = "suspect"  # rule 22: the shard died with it alone in prefill
    SHUTDOWN = "shutdown"  # the router is stopping


@dataclass(frozen=True, slots=True)
class Failure:
    """A fault that ended one request; `message` is for the client."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Alternatives at one position, best first; ties at the cut are all present. Natural-log probabilities."""

    ids: "array[int]"
    logprobs: "array[float]"


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens `start`, `start + 1` ...; `top` is empty when none were asked."""

    start: int
    logprobs: "array[float]"
    top: tuple[TopTokens, ...] = ()


@dataclass(slots=True)
class RequestOutput:
    """What one step brought for one request. Only tokens that count are in here: leaving requests are filtered out.

    A prefill chunk with prompt log-probabilities has no token. The last output of a request has `finish` or `failure`.
    """

    request_id: RequestId
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # parallel to tokens; empty unless asked
    top_tokens: tuple[TopTokens, ...] = ()  # parallel to tokens; empty unless asked
    prompt_logprobs: PromptLogprobs | None = None
    finish: FinishReason | None = None
    failure: Failure | None = None
    num_cached_tokens: int = 0  # prompt tokens found by prefix at first admission
    admitted_s: float = 0.0  # when the request first left the queue; the scheduler's clock


class OutputSink(Protocol):
    """Reader of one request's tokens; called in the engine loop's thread, must not block.

    A reader that raises gets a failure instead of further outputs.
    """

    def on_output(self, output: RequestOutput) -> None: ...
