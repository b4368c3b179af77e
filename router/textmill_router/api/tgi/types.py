"""The bodies and answers of TGI's dialect. A field of a body that is `null` counts as absent."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from textmill_router.grammar.request_forms import tgi_grammar
from textmill_router.serving.timings import TextmillOptions, Timings
from textmill_router.serving.validation import RequestedParameters, breakers_of, numbers_of

TgiFinish = Literal["length", "eos_token", "stop_sequence"]


class TgiParameters(msgspec.Struct, frozen=True, gc=False):
    """The `parameters` of a generate body."""

    adapter_id: str | None = None
    best_of: int | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    dry_allowed_length: int | None = None
    dry_base: float | None = None
    dry_multiplier: float | None = None
    dry_sequence_breakers: list[str] | None = None
    frequency_penalty: float | None = None
    grammar: Any = None
    ignore_eos: bool | None = None
    logit_bias: dict[int, float] | None = None
    max_new_tokens: int | None = None
    max_time: float | None = None
    min_new_tokens: int | None = None
    min_p: float | None = None
    num_return_sequences: int | None = None
    presence_penalty: float | None = None
    priority: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = None
    top_p: float | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None


class RequestOptions(msgspec.Struct, frozen=True, gc=False):
    """The `options` of a generate body, as the Inference API has them."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None


NO_OPTIONS = RequestOptions()


class GenerateBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /generate and /generate_stream. A list of inputs is answered by a list."""

    inputs: str | list[str]
    parameters: TgiParameters | None = None
    options: RequestOptions | None = None
    textmill: TextmillOptions | None = None


class TokenizeBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /tokenize, which is a generate body of which only `inputs` counts."""

    inputs: str
    parameters: TgiParameters | None = None
    options: RequestOptions | None = None


class CompatParameters(TgiParameters, frozen=True, gc=False):
    """The `parameters` of `POST /`, where those of transformers' `generate` count too."""

    early_stopping: bool | Literal["never"] | None = None
    encoder_no_repeat_ngram_size: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    length_penalty: float | None = None
    max_length: int | None = None
    min_length: int | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None


class CompatBody(GenerateBody, frozen=True, gc=False):
    """The body of `POST /`, in which `stream` asks for events."""

    parameters: CompatParameters | None = None
    stream: bool | None = None


class ReplicaInfo(msgspec.Struct, frozen=True, gc=False):
    """One replica in /info. `phase` is a phase of `EnginePhase`; slots and blocks are 0 while the replica is away."""

    replica: int
    phase: str
    num_slots: int
    num_blocks: int


class AdapterStatus(msgspec.Struct, frozen=True, gc=False):
    """One adapter in /info. `running` counts the calls that hold it; rank and digest are null until it is loaded."""

    id: str
    rank: int | None
    digest: str | None
    state: Literal["registered", "loading", "ready"]
    running: int


class InfoAnswer(msgspec.Struct, frozen=True, gc=False):
    """The answer of /info, with the fields of TGI 3, then those of TGI 2, then a field of Textmill."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
    max_input_length: int
    model_dtype: str
    model_device_type: str
    max_batch_total_tokens: int
    max_batch_size: int | None
    health_state: str
    replicas: list[ReplicaInfo]
    adapters: list[AdapterStatus]
    media_kinds: list[str]
    media_cache_bytes: int
    kv_cache_dtype: str | None  # None: a shard of an older version does not tell
    task: str
    tasks: list[str]  # that a call may ask for
    labels: dict[str, str]  # none, as /info of other tasks has them
    # Both are 0, because new prompts join the running batch at the next step.
    max_waiting_tokens: int = 0
    waiting_served_ratio: float = 0.0


class DetokenizeBody(msgspec.Struct, frozen=True, gc=False):
    """Body of /detokenize."""

    ids: list[int]
    skip_special_tokens: bool | None = None  # true unless said otherwise


class DetokenizeAnswer(msgspec.Struct, frozen=True, gc=False):
    """Answer of /detokenize."""

    text: str


class VertexBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /vertex, in which each instance is the `inputs` or the body of a call, or the body of a chat.

    `parameters` count for the instances that have none of their own.
    """

    instances: list[str | list[Any] | dict[str, Any]]
    parameters: dict[str, Any] | None = None


class VertexAnswer(msgspec.Struct, frozen=True, gc=False):
    """The answer of /vertex, with one text for each instance, or the answer of the task at `POST /`, in order."""

    predictions: list[Any]


class Token(msgspec.Struct, frozen=True, gc=False):
    """An output token or an alternative to one."""

    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(msgspec.Struct, frozen=True, gc=False):
    """A prompt token. The first token of a prompt has no log-probability."""

    id: int
    text: str
    logprob: float | None


class BestOfSequence(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A sequence of `best_of` that is not the best one."""

    generated_text: str
    finish_reason: TgiFinish
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True, gc=False):
    """The `details` of an answer. A key that is UNSET is left out and not null."""

    finish_reason: TgiFinish
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[Token]] | UnsetType = UNSET


class GenerateAnswer(msgspec.Struct, frozen=True, gc=False):
    """The answer of /generate, which `POST /` wraps in an array of one."""

    generated_text: str
    details: Details | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET  # with `"textmill": {"timings": true}`


class StreamDetails(msgspec.Struct, frozen=True, gc=False):
    """The `details` of the last event."""

    finish_reason: TgiFinish
    generated_tokens: int
    seed: int | None
    input_length: int


class TokenizedToken(msgspec.Struct, frozen=True, gc=False):
    """A token of /tokenize, whose offsets are in bytes of the input."""

    id: int
    text: str
    start: int
    stop: int


def requested_parameters(parameters: TgiParameters | None, *, streams: bool) -> RequestedParameters:
    """Return the parameters in the form that all dialects share.

    Raises ValidationFailed for a grammar of no known shape.
    """
    if parameters is None:
        return RequestedParameters(do_sample=True, streams=streams)
    stop = parameters.stop
    return RequestedParameters(
        numbers=numbers_of(parameters),
        do_sample=parameters.do_sample or False,
        logit_bias=tuple((parameters.logit_bias or {}).items()),
        best_of=parameters.best_of,
        max_time=parameters.max_time,
        ignore_eos=parameters.ignore_eos or False,
        grammar=tgi_grammar(parameters.grammar),
        watermark=parameters.watermark or False,
        dry_sequence_breakers=breakers_of(parameters),
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        wants_prompt_details=parameters.decoder_input_details or False,
        streams=streams,
    )
