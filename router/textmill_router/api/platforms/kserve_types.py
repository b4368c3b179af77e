"""The bodies and answers of the Open Inference Protocol, version 2. A field of a body that is `null` counts as absent.

Source: `open_inference_rest.yaml` and `generate_rest.yaml` of kserve/open-inference-protocol. A field that a body here
does not have is refused by its name, because the protocol lets each server choose its parameters.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from textmill_router.errors import ValidationFailed
from textmill_router.grammar.request_forms import tgi_grammar
from textmill_router.serving.validation import RequestedParameters, breakers_of, numbers_of

INPUT, OUTPUT, BYTES = "text_input", "text_output", "BYTES"
V2Finish = Literal["length", "eos_token", "stop_sequence"]


class V2Parameters(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The `parameters` of a body. The names are TGI's, and `max_tokens` is the protocol's name of `max_new_tokens`."""

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
    max_tokens: int | None = None
    min_new_tokens: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    priority: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None


NO_PARAMETERS = V2Parameters()


class V2GenerateBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The body of `/generate` and `/generate_stream`."""

    text_input: str
    parameters: V2Parameters | None = None


class V2InputTensor(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A tensor of `inputs`, whose `data` is flat or has one list for each row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | list[str]]
    parameters: dict[str, Any] | None = None


class V2RequestedOutput(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """An output that the client asks for."""

    name: str
    parameters: dict[str, Any] | None = None


class V2InferBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The body of `/infer`."""

    inputs: list[V2InputTensor]
    id: str | None = None
    parameters: V2Parameters | None = None
    outputs: list[V2RequestedOutput] | None = None


class V2Live(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/v2/health/live`."""

    live: bool


class V2Ready(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/v2/health/ready`. The protocol's text has `live` here, and its servers have `ready`."""

    live: bool
    ready: bool


class V2ModelReady(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/v2/models/{model}/ready`."""

    name: str
    ready: bool


class V2Server(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/v2`."""

    name: str
    version: str
    extensions: list[str]


class V2TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """A tensor as the metadata of the model names it. A dimension of -1 has any size."""

    name: str
    datatype: str
    shape: list[int]


class V2Model(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/v2/models/{model}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[V2TensorInfo]
    outputs: list[V2TensorInfo]


class V2Token(msgspec.Struct, frozen=True, gc=False):
    """An output token. `logprob` is a natural logarithm, or null where JSON cannot hold the number."""

    id: int
    text: str
    logprob: float | None
    special: bool


class V2Details(msgspec.Struct, frozen=True, gc=False):
    """The `details` of an answer of `/generate`."""

    finish_reason: V2Finish
    logprobs: list[V2Token]


class V2Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/generate`."""

    model_name: str
    model_version: str
    text_output: str
    details: V2Details | UnsetType = UNSET


class V2StreamDetails(msgspec.Struct, frozen=True, gc=False):
    """The `details` of an event. The reason is null until the last event."""

    finish_reason: V2Finish | None
    token: V2Token


class V2Event(msgspec.Struct, frozen=True, gc=False):
    """An event of `/generate_stream`, whose `text_output` follows the texts of the events before."""

    model_name: str
    model_version: str
    text_output: str
    details: V2StreamDetails | UnsetType = UNSET


class V2OutputTensor(msgspec.Struct, frozen=True, gc=False):
    """The tensor of the answers of `/infer`, with the shape of the input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str]


class V2InferAnswer(msgspec.Struct, frozen=True, gc=False):
    """The answer of `/infer`. `id` is the id of the body, and is left out where the body has none."""

    model_name: str
    model_version: str
    outputs: list[V2OutputTensor]
    id: str | UnsetType = UNSET


class V2Error(msgspec.Struct, frozen=True, gc=False):
    """An error on `/v2`."""

    error: str


def requested_v2(parameters: V2Parameters, *, streams: bool) -> RequestedParameters:
    """Return the parameters in the form that all dialects share. Raises ValidationFailed."""
    numbers = numbers_of(parameters)
    if parameters.max_tokens is not None:
        if parameters.max_new_tokens is not None:
            raise ValidationFailed(
                "`max_tokens` and `max_new_tokens` are one number; leave one of them out", field="max_tokens"
            )
        numbers["max_new_tokens"] = parameters.max_tokens
    stop = parameters.stop
    return RequestedParameters(
        numbers=numbers,
        do_sample=parameters.do_sample or False,
        logit_bias=tuple((parameters.logit_bias or {}).items()),
        max_time=parameters.max_time,
        ignore_eos=parameters.ignore_eos or False,
        grammar=tgi_grammar(parameters.grammar),
        watermark=parameters.watermark or False,
        dry_sequence_breakers=breakers_of(parameters),
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        streams=streams,
    )


def texts_of(body: V2InferBody, limit: int) -> list[str]:
    """Return the texts of the one input tensor, in order. Raises ValidationFailed for anything that is not taken.

    The tensor is `text_input` of the datatype BYTES, with as many elements as its shape says and at most `limit`.
    """
    if len(body.inputs) != 1:
        names = ", ".join(repr(tensor.name[:64]) for tensor in body.inputs) or "none"
        raise ValidationFailed(
            f"`inputs` must hold one tensor, {INPUT!r}, found {names}; other values belong to `parameters`",
            field="inputs",
        )
    [tensor] = body.inputs
    if tensor.name != INPUT:
        raise ValidationFailed(f"`inputs[0].name` must be {INPUT!r}, found {tensor.name[:64]!r}", field="inputs")
    if tensor.datatype != BYTES:
        raise ValidationFailed(
            f"`inputs[0].datatype` must be {BYTES!r}, with texts as `data`, found {tensor.datatype[:64]!r}",
            field="inputs",
        )
    _check_no_parameters("inputs[0]", tensor.parameters)
    for index, output in enumerate(body.outputs or ()):
        if output.name != OUTPUT:
            name = f"outputs[{index}].name"
            raise ValidationFailed(f"`{name}` must be {OUTPUT!r}, found {output.name[:64]!r}", field="outputs")
        _check_no_parameters(f"outputs[{index}]", output.parameters)
    texts = [text for row in tensor.data for text in ([row] if isinstance(row, str) else row)]
    if not 1 <= len(texts) <= limit:
        raise ValidationFailed(
            f"`inputs[0].data` must hold 1 to {limit} texts (--max-client-batch-size), found {len(texts)}",
            field="inputs",
        )
    if not _has_size(tensor.shape, len(texts)) or not _has_rows(tensor.shape, tensor.data):
        raise ValidationFailed(
            f"`inputs[0].shape` must be the shape of `data`, which holds {len(texts)} texts, found {tensor.shape[:8]}",
            field="inputs",
        )
    return texts


def _has_size(shape: list[int], size: int) -> bool:
    """Whether a tensor of this shape has `size` elements, which are at least one, so that no dimension is 0."""
    if not shape or len(shape) > 8 or not all(1 <= dimension <= size for dimension in shape):
        return False
    product = 1
    for dimension in shape:
        product *= dimension
    return product == size


def _has_rows(shape: list[int], data: list[str | list[str]]) -> bool:
    """Whether `data` is flat, or all rows have the length that a shape of two dimensions says."""
    if all(isinstance(row, str) for row in data):
        return True
    return all(isinstance(row, list) and [len(row)] == shape[1:] for row in data)


def _check_no_parameters(place: str, parameters: dict[str, Any] | None) -> None:
    """Raise ValidationFailed for parameters of a tensor, but for `binary_data: false`, which asks for JSON."""
    for name, value in (parameters or {}).items():
        if name != "binary_data" or value is not False:
            path = f"{place}.parameters.{name[:64]}"
            raise ValidationFailed(
                f"`{path}` is not taken: tensors are JSON and have no parameters; leave the field out", field=path
            )
