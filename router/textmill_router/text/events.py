"""The options of a generation, and what the generation gives: an event for each token, one result or a failure."""

from dataclasses import dataclass

from textmill_router.request import Failure, FinishReason, RequestId


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Options of one generation.

    `keep_stop_match`: whether the text ends after the stop string that matches (TGI's dialect) or before that
    string, so that no part of the match is sent (/v1).
    `keep_tokens`: whether the result lists all tokens. If not, `result()` makes no object per token.
    `shown_specials`: special tokens whose text counts as output text, for parsers that look for this text.
    `deadline_s`: a time on the clock of `time.monotonic`. At this time `result()` ends with the text so far, and so
    does a stream without a token. A stream that has tokens ends with the next token, if that token comes soon. A stream
    that no token ends has a last event with an empty token of the id `padding_token_id`, which counts nowhere.
    """

    stop_strings: tuple[str, ...] = ()
    keep_stop_match: bool = True
    keep_tokens: bool = True
    shown_specials: frozenset[int] = frozenset()
    deadline_s: float | None = None
    padding_token_id: int = 0


@dataclass(frozen=True, slots=True)
class TopToken:
    """An alternative to a token. `logprob` is the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float
    is_special: bool


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt. The first token has no probability."""

    id: int
    text: str
    logprob: float | None
    top_tokens: tuple[TopToken, ...] = ()


@dataclass(slots=True)
class TokenEvent:
    """One output token. `text` is its whole text, `released_text` the text that may be shown because of it."""

    index: int  # of the token in the output, from 1
    id: int
    text: str  # "" while a character is incomplete; the literal text of a special token
    logprob: float  # NaN where the request asks for no log-probabilities
    is_special: bool
    top_tokens: tuple[TopToken, ...]
    released_text: str
    result: "GenerationResult | None" = None  # in the last event


@dataclass(slots=True)
class GenerationResult:
    """The whole answer. All times are in seconds."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    tokens: list[TokenEvent]  # empty unless `keep_tokens`
    prompt_tokens: list[PromptToken]  # empty unless `wants_prompt_logprobs`
    num_cached_tokens: int
    queue_s: float  # arrival until the request first left the queue
    inference_s: float  # from the first leave of the queue to the last token
    first_token_s: float  # arrival until the first token
    request_id: RequestId  # under which the shard knows the sequence
    num_preemptions: int = 0
    num_steps: int = 0  # forward passes that computed tokens of this request
    stopped_by: str | int | None = None  # the stop string, or the id that the client named, which ended the answer
    num_image_tokens: int = 0  # prompt tokens that stand for rows of images

    @property
    def prefill_s(self) -> float:
        """From the first leave of the queue to the first token."""
        return self.first_token_s - self.queue_s

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.inference_s - self.prefill_s


class GenerationFailed(Exception):
    """The request ended without a result."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
