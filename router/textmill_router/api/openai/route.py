"""What the routes of /v1 that generate have in common: from the body to admission, and the frame of a stream."""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Generic, Protocol, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.openai.model_names import check_model
from textmill_router.api.openai.types import Envelope, OpenAIBody, in_openai_words
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.error_responses import error_event
from textmill_router.http.event_stream import EventStream
from textmill_router.http.json_body import read_json
from textmill_router.http.replies import call_of
from textmill_router.request import GenerationRequest
from textmill_router.serving.call import admitted, serve
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.call_record import CallRecord
from textmill_router.serving.failures import generation_error
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.validation import CheckedParameters, RequestedParameters, check_parameters
from textmill_router.text.events import GenerationFailed, TextOptions
from textmill_router.text.generation import Generation, start_generation

MAX_TOP_LOGPROBS = 20
_DONE = b"data: [DONE]\n\n"

_Body = TypeVar("_Body", bound=OpenAIBody)


class OpenAIWork(Protocol):
    """One call whose fields obey the rules; both methods run while its permits are held."""

    @property
    def num_sequences(self) -> int: ...
    async def stream(self, scope: Scope, send: Send) -> None: ...
    async def answer_whole(self, scope: Scope, send: Send) -> None: ...


class OpenAIRoute(Generic[_Body]):
    """An ASGI endpoint. `prepare` checks the fields of a body; it raises RequestError."""

    def __init__(
        self,
        service: Service,
        decoder: "msgspec.json.Decoder[_Body]",
        prepare: Callable[[_Body, Service, Backend, CallRecord], OpenAIWork],
    ) -> None:
        self._service = service
        self._decoder = decoder
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self._service, scope, send, lambda: self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.permits.check_open()
        body = await read_json(scope, receive, self._decoder, service.settings.payload_limit)
        check_model(body.model, service.settings)
        backend = await ready_backend(service, scope, receive)
        work = self._prepare(body, service, backend, CallRecord(service, backend, call_of(scope)))
        async with admitted(service, receive, work.num_sequences):
            if body.stream:
                await work.stream(scope, send)
            else:
                await work.answer_whole(scope, send)


def checked_parameters(requested: RequestedParameters, backend: Backend, names: Mapping[str, str]) -> CheckedParameters:
    """Raises ValidationFailed with `names`, those that the fields have in this body."""
    limits = backend.limits
    limits = replace(limits, max_top_n_tokens=max(limits.max_top_n_tokens, MAX_TOP_LOGPROBS))
    try:
        return check_parameters(requested, limits)
    except ValidationFailed as error:
        raise in_openai_words(error, names) from None


async def start_all(
    stack: AsyncExitStack, backend: Backend, requests: Sequence[GenerationRequest], options: TextOptions
) -> list[Generation]:
    """Submit all in one turn, so that the first of a prompt computes it for its further sequences."""
    return [
        await stack.enter_async_context(start_generation(backend.engine, backend.tokenizer, request, options))
        for request in requests
    ]


async def stream_answer(
    scope: Scope, send: Send, account: CallRecord, write: Callable[[EventStream], Awaitable[bytes]]
) -> None:
    """`write` sends chunks and returns those that end the stream; an error after the first of them is an event."""
    stream = EventStream(scope, send, account.stream_headers())
    try:
        last = await write(stream)
        await stream.end(last + _DONE)
    except (GenerationFailed, RequestError) as failed:
        if not stream.is_started:
            raise
        error = failed if isinstance(failed, RequestError) else generation_error(failed.failure)
        account.note_failure(error)
        await stream.end(error_event(error, call_of(scope).error_style) + _DONE)
    finally:
        stream.close()


def new_envelope(service: Service, prefix: str) -> Envelope:
    """A new id, the time, the name of what answers."""
    return Envelope(
        id=f"{prefix}{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.settings.model_id,
        system_fingerprint=_fingerprint(),
    )


@cache
def _fingerprint() -> str:
    return f"{version('textmill')}-native"  # read from a file
