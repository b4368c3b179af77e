"""The parts that the generating routes of /v1 share: the model's name, the limits, the envelope of an answer."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import TypeVar

from starlette.types import Scope

from textmill_router.api.openai.errors import V1_ERROR_STYLES
from textmill_router.api.openai.model_names import asked_by_both, check_model
from textmill_router.api.openai.token_fields import checked_allowed_ids, checked_bad_sequences
from textmill_router.api.openai.types import Envelope, OpenAIBody, reword
from textmill_router.errors import ValidationFailed
from textmill_router.exact_json import exact_decoder
from textmill_router.http.path_style import PathStyle
from textmill_router.serving.call_record import CallRecord
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.validation import CheckedParameters, RequestedParameters, check_parameters

MAX_TOP_LOGPROBS = 20
DONE = b"data: [DONE]\n\n"  # the last event of each stream

_Body = TypeVar("_Body", bound=OpenAIBody)


# Fields that bind the answer on other servers, and that no body of /v1 has here.
_REFUSED = {
    "adapter_id": "name the adapter in `model`",
    "lora_path": "name a loaded adapter in `model`",
    "max_new_tokens": "use `max_tokens`",
    "n_predict": "use `max_tokens`",
    "prompt_embeds": "a prompt is text or token ids",
    "repeat_penalty": "use `repetition_penalty`",
}


def openai_route(
    service: Service,
    body_type: type[_Body],
    prepare: Callable[[_Body, IncomingCall], PreparedCall],
) -> GeneratingRoute[_Body]:
    """An ASGI endpoint. `prepare` checks the fields of a body; it raises RequestError."""

    def check_name(body: _Body, _: Scope) -> None:
        check_model(body.model, service)

    decoder = exact_decoder(body_type)
    style = PathStyle("/v1/", V1_ERROR_STYLES[service.settings.v1_errors])
    return GeneratingRoute(
        service,
        decoder,
        prepare,
        style,
        check_model=check_name,
        priority_of=lambda body: body.priority,
        adapter_of=lambda body, _: asked_by_both(body.model, getattr(body, "adapter_id", None), service),
        reword=reword,
        refused_fields=_REFUSED,
    )


def checked_parameters(body: OpenAIBody, requested: RequestedParameters, backend: Backend) -> CheckedParameters:
    """Parameters within the limits of the server, or within OpenAI's where those are wider. Raises RuleBroken."""
    limits = backend.limits
    requested = replace(
        requested,
        allowed_ids=checked_allowed_ids(body, limits.vocab_size),
        bad_sequences=checked_bad_sequences(body, backend.tokenizer, limits.vocab_size),
    )
    if body.truncate_prompt_tokens is not None:
        truncate = _truncate(body.truncate_prompt_tokens, limits.max_input_tokens)
        requested = replace(requested, numbers={**requested.numbers, "truncate": truncate})
    return check_parameters(requested, replace(limits, max_top_n_tokens=max(limits.max_top_n_tokens, MAX_TOP_LOGPROBS)))


def _truncate(num_tokens: int, most: int) -> int:
    """Return how many tokens of the prompt are kept. As in vLLM, -1 keeps as many as the server takes."""
    if num_tokens == -1:
        return most
    if not 1 <= num_tokens <= most:
        name = "truncate_prompt_tokens"
        raise ValidationFailed(f"`{name}` must be 1 to {most}, or -1 for {most}, found {num_tokens}", field=name)
    return num_tokens


def new_envelope(record: CallRecord, prefix: str) -> Envelope:
    """Return an envelope with a new id, the time and the name of what answers."""
    return Envelope(
        id=f"{prefix}{uuid.uuid4().hex}",
        created=int(time.time()),
        model=record.model_name,
        system_fingerprint=_fingerprint(),
    )


@cache
def _fingerprint() -> str:
    return f"{version('textmill')}-native"  # read from a file
