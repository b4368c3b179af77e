"""The fields that the bodies of /v1 share, and usage. A field that is `null` counts as absent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from textmill_router.bounds import MAX_I32, Bounds
from textmill_router.errors import OverBudget, RuleBroken, StreamOptionsRefused, ValidationFailed
from textmill_router.request import FinishReason
from textmill_router.serving.logprobs import shown_logprob
from textmill_router.serving.timings import TextmillOptions, timings_member, wants_timings
from textmill_router.serving.validation import RequestedParameters, breakers_of, numbers_of, unsigned_seed
from textmill_router.text.events import GenerationResult

FINISH_REASONS = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "stop",
    FinishReason.STOP_ID: "stop",
    FinishReason.STOP_STRING: "stop",
}

# The least log-probability that OpenAI shows, because JSON has no infinity.
LEAST_LOGPROB = -9999.0
# Numbers that have another range on /v1 than in TGI's dialect. Each value that TGI does not know has a meaning here.
OPENAI_BOUNDS = {
    "top_p": Bounds(low=0, high=1, is_whole=False, note="1 is off"),
    "top_k": Bounds(low=-1, high=MAX_I32, note="0 and -1 are off"),
}
# The smallest share in 32-bit floats that is more than nothing, which is that of the best token.
_LEAST_TOP_P = 1e-30


class StreamOptions(msgspec.Struct, frozen=True, gc=False):
    """The `stream_options` of a body."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # of vLLM: each chunk counts too


class OpenAIBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that chats and completions share; those of the last two blocks are extensions of OpenAI's API."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | list[float] | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Any = None
    response_format: dict[str, Any] | None = None
    textmill: TextmillOptions | None = None
    priority: int | None = None

    do_sample: bool | None = None
    repetition_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_sequence_breakers: list[str] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None

    # Of other servers: what the answer must match (`answer_grammar.py`), and what is refused (`refused_fields.py`).
    grammar: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    stop_token_ids: list[int] | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    guided_whitespace_pattern: Any = None
    custom_logit_processor: Any = None
    logits_processors: Any = None
    return_tokens_as_token_ids: Any = None
    skip_special_tokens: Any = None
    no_stop_trim: Any = None
    structural_tag: Any = None
    use_beam_search: Any = None

    @property
    def names(self) -> Mapping[str, str]:
        """The names of this body's fields, by the names that the fields have in TGI's dialect where these differ."""
        return {}

    @property
    def wants_token_ids(self) -> bool:
        """Whether the answer has the ids of its tokens and of the prompt, as in vLLM."""
        return bool(self.return_token_ids)

    @property
    def wants_stop_reason(self) -> bool:
        """Whether each choice says which of the client's stops ended it, as in vLLM."""
        return bool(self.stop or self.stop_token_ids)

    @property
    def wants_running_usage(self) -> bool:
        """Whether each chunk of a stream that ends with a chunk of usage has the counts so far."""
        return self.wants_usage_event and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def wants_timings(self) -> bool:
        """Whether the answer, or the last event of each choice and of the stream, has an object `timings`."""
        return wants_timings(self.textmill)

    @property
    def wants_usage_event(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class PromptTokensDetails(msgspec.Struct, frozen=True, gc=False):
    """How many tokens of the prompt were found in the prefix cache, and how many stand for images, if some do."""

    cached_tokens: int
    image_tokens: int | UnsetType = UNSET


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a call, which are those of each prompt once and those of the output of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct, frozen=True, gc=False):
    """An alternative to a token of chat `logprobs`."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """A token of chat `logprobs`."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields that all chunks of an answer, or the whole answer, have in common."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str


def requested_sampling(body: OpenAIBody) -> RequestedParameters:
    """Return the parameters of a body in the form that all dialects share, but for `truncate_prompt_tokens`.

    Temperature 0 is greedy, and any other temperature samples, as at OpenAI, unless the body says `do_sample`. Raises
    RuleBroken for a number beyond the range that it has on /v1.
    """
    numbers = numbers_of(body, body.names)
    for name, row in OPENAI_BOUNDS.items():
        row.check(name, numbers.get(name))
    if numbers.get("top_k") in (0, -1):  # off
        del numbers["top_k"]
    if numbers.get("top_p") == 0:
        numbers["top_p"] = _LEAST_TOP_P
    if body.seed is not None:
        numbers["seed"] = unsigned_seed(body.seed)
    stop = body.stop
    return RequestedParameters(
        numbers=numbers,
        do_sample=body.temperature != 0 if body.do_sample is None else body.do_sample,
        logit_bias=_logit_bias(body.logit_bias),
        dry_sequence_breakers=breakers_of(body),
        ignore_eos=body.ignore_eos or False,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        streams=bool(body.stream),
    )


def finite_logprob(logprob: float) -> float:
    """Return a log-probability as /v1 shows the number."""
    shown = shown_logprob(logprob)
    return LEAST_LOGPROB if shown is None else shown


def check_n(n: int | None, max_n: int) -> int:
    """Return the number of choices. Raises ValidationFailed."""
    if n is None:
        return 1
    if not 1 <= n <= max_n:
        raise ValidationFailed(f"`n` must be 1 to {max_n} (--max-n), found {n}", field="n")
    return n


class ChunkExtras:
    """The fields of vLLM in the chunks of one choice: ids of tokens, and the stop that ended the choice."""

    def __init__(self, body: OpenAIBody, prompt_ids: Sequence[int] = ()) -> None:
        self._ids: list[int] | None = [] if body.wants_token_ids else None
        self._prompt_ids = prompt_ids  # shown once, where the ids belong to a choice
        self._has_reason = body.wants_stop_reason

    @property
    def is_empty(self) -> bool:
        return self._ids is None and not self._has_reason

    def add(self, ids: Iterable[int]) -> None:
        """Keep ids for the next chunk."""
        if self._ids is not None:
            self._ids += ids

    def take(self, result: GenerationResult | None = None) -> str:
        """Return the fields of a chunk, each behind a comma; `result` is that of the last chunk."""
        fields = ""
        if self._ids:
            fields = f',"token_ids":{msgspec.json.encode(self._ids).decode()}'
            self._ids = []
        if self._ids is not None and self._prompt_ids:
            fields += f',"prompt_token_ids":{msgspec.json.encode(list(self._prompt_ids)).decode()}'
            self._prompt_ids = ()
        if result is not None and self._has_reason:
            fields += f',"stop_reason":{msgspec.json.encode(result.stopped_by).decode()}'
        return fields


def shown_extras(result: GenerationResult, *, has_ids: bool, has_stop_reason: bool) -> dict[str, Any]:
    """Return the fields of vLLM in a whole choice, as far as the call asks for them."""
    shown: dict[str, Any] = {}
    if has_ids:
        shown["token_ids"] = [event.id for event in result.tokens]
    if has_stop_reason:
        shown["stop_reason"] = result.stopped_by
    return shown


class ChunkTail:
    """The end of each chunk of one choice: without `usage`, with null, or with the counts of the choice so far."""

    def __init__(self, body: OpenAIBody, num_prompt_tokens: int) -> None:
        self._fixed = ',"usage":null}\n\n' if body.wants_usage_event else "}\n\n"
        self._counts = body.wants_running_usage
        self._has_timings = body.wants_timings
        self._num_prompt_tokens = num_prompt_tokens

    def after(self, num_output_tokens: int) -> str:
        """Return the end of a chunk that shows the token of this number, from 1."""
        if not self._counts:
            return self._fixed
        num_prompt = self._num_prompt_tokens
        return (
            f',"usage":{{"prompt_tokens":{num_prompt},"completion_tokens":{num_output_tokens},'
            f'"total_tokens":{num_prompt + num_output_tokens}}}}}\n\n'
        )

    def last(self, num_output_tokens: int, result: GenerationResult) -> str:
        """Return the end of the chunk that ends the choice."""
        member = timings_member([result]) if self._has_timings else ""
        return member + self.after(num_output_tokens)


NO_USAGE = ChunkTail(OpenAIBody(), 0)


def check_stream_options(body: OpenAIBody) -> None:
    """Raise StreamOptionsRefused for `stream_options` of a call that is answered whole."""
    if body.stream_options is not None and not body.stream:
        raise StreamOptionsRefused("`stream_options` needs `stream: true`; leave it out", field="stream_options")


def reword(body: OpenAIBody, error: RuleBroken) -> None:
    """Put the body's names of its fields, and OpenAI's words, into a refusal."""
    names = body.names
    if isinstance(error, OverBudget):
        error.reword(
            names,
            f"This model's maximum context length is {{window_tokens}} tokens. However, {error.found}. Please shorten "
            "the prompt or ask for fewer tokens. (context_length_exceeded)",
        )
    else:
        error.reword(names)


def usage_of(results: list[GenerationResult], num_prompts: int = 1) -> Usage:
    """Return the usage of a call. `results` has those of all choices, with the choices of one prompt side by side."""
    firsts = results[:: len(results) // num_prompts]
    num_prompt_tokens = sum(result.num_prompt_tokens for result in firsts)
    num_output_tokens = sum(result.num_output_tokens for result in results)
    num_image_tokens = sum(result.num_image_tokens for result in firsts)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(
            sum(result.num_cached_tokens for result in firsts), num_image_tokens or UNSET
        ),
    )


def _logit_bias(bias: dict[int, float] | list[float] | None) -> tuple[tuple[int, float], ...]:
    """Return the entries that are not zero, from a map by id, or from TGI's array of the ids 0, 1 and so on."""
    entries = enumerate(bias) if isinstance(bias, list) else (bias or {}).items()
    return tuple((token_id, value) for token_id, value in entries if value)
