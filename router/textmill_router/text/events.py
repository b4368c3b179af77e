"""The options of a generation, and what the generation gives: an event for each token, one result or a failure."""

from dataclasses import dataclass

from textmill_router.request import Failure, FinishReason, RequestId


@dataclass(frozen=True, slots=True)
class TextOptions:
    """`keep_stop_match`: the text ends after a stop string (native) or before it, nothing of it being sent (/v1).

    `keep_tokens`: the result lists all tokens (details). Without it `result()` makes no object per token.
    `shown_specials`: special tokens whose text counts as output text, for parsers that look for them.
    `deadline_s`: on the clock of `time.monotonic`. `result()` ends then with what there is, and so does a stream that
    has no token yet; one that has some ends with the next, if that comes soon. A stream that no token ends has a last
    event with an empty one, of the id `padding_token_id`: it counts nowhere.
    """

    stop_strings: tuple[str, ...] = ()
    keep_stop_match: bool = True
    keep_tokens: bool = True
    shown_specials: frozenset[int] = frozenset()
    deadline_s: float | None = None
    padding_token_id: int = 0


@dataclass(frozen=True, slots=True)
class TopToken:
    """An alternative; natural-log probability."""

    id: int
    text: str
    logprob: float
    is_special: bool


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A prompt token; the first one has no probability."""

    id: int
    text: str
    logprob: float | None
    top_tokens: tuple[TopToken, ...] = ()


@dataclass(slots=True)
class TokenEvent:
    """One output token. `text` is the whole text of the token; `released_text` what may be shown because of it."""

    index: int  # from 1
    id: int
    text: str  # "" while a character is incomplete; special tokens literally
    logprob: float  # NaN when the request did not ask
    is_special: bool
    top_tokens: tuple[TopToken, ...]
    released_text: str
    result: "GenerationResult | None" = None  # in the last event


@dataclass(slots=True)
class GenerationResult:
    """The whole answer. Times in seconds."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    tokens: list[TokenEvent]  # empty unless `keep_tokens`
    prompt_tokens: list[PromptToken]  # empty unless `wants_prompt_logprobs`
    num_cached_tokens: int
    queue_s: float  # arrival until the request first left the queue
    inference_s: float  # from there to the last token
    first_token_s: float  # arrival until the first token
    request_id: RequestId  # under which the shard knows the sequence


class GenerationFailed(Exception):
    """The request ended without a result."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
