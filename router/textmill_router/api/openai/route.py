"""The parts that the generating routes of /v1 share: the model's name, the limits, the envelope of an answer."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from typing import TypeVar

from textmill_router.api.openai.errors import V1_ERROR_STYLES
from textmill_router.api.openai.model_names import check_model
from textmill_router.api.openai.types import Envelope, OpenAIBody, reword
from textmill_router.exact_json import exact_decoder
from textmill_router.http.path_style import PathStyle
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.validation import CheckedParameters, RequestedParameters, check_parameters

MAX_TOP_LOGPROBS = 20
DONE = b"data: [DONE]\n\n"  # the last event of each stream

_Body = TypeVar("_Body", bound=OpenAIBody)


def openai_route(
    service: Service,
    body_type: type[_Body],
    prepare: Callable[[_Body, IncomingCall], PreparedCall],
    names: Mapping[str, str],
) -> GeneratingRoute[_Body]:
    """An ASGI endpoint. `prepare` checks the fields of a body; it raises RequestError.

    `names` has the fields of the body that the native dialect calls otherwise.
    """

    def check_name(body: _Body) -> None:
        check_model(body.model, service.settings)

    decoder = exact_decoder(body_type)
    style = PathStyle("/v1/", V1_ERROR_STYLES[service.settings.v1_errors])
    return GeneratingRoute(service, decoder, prepare, style, check_model=check_name, reword=partial(reword, names))


def checked_parameters(requested: RequestedParameters, backend: Backend) -> CheckedParameters:
    """Parameters within the limits of the server, or within OpenAI's where those are wider. Raises RuleBroken."""
    limits = backend.limits
    return check_parameters(requested, replace(limits, max_top_n_tokens=max(limits.max_top_n_tokens, MAX_TOP_LOGPROBS)))


def new_envelope(service: Service, prefix: str) -> Envelope:
    """Return an envelope with a new id, the time and the name of the model."""
    return Envelope(
        id=f"{prefix}{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.settings.model_id,
        system_fingerprint=_fingerprint(),
    )


@cache
def _fingerprint() -> str:
    return f"{version('textmill')}-native"  # read from a file
