"""The frame around the work of each call that generates: metrics, the client's leaving, permits, errors."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from textmill_router.engine.status import EngineUnavailable
from textmill_router.errors import ModelLoading, Recovering, RequestError, ShuttingDown, TemplateFailed
from textmill_router.http.call import Call, call_of
from textmill_router.http.disconnect import UntilClientLeaves
from textmill_router.http.error_responses import error_kind
from textmill_router.http.json_body import ClientLeft
from textmill_router.http.replies import send_error
from textmill_router.request import Grammar
from textmill_router.scheduler.waiting_queue import QueueFull
from textmill_router.serving.call_terms import CallTerms
from textmill_router.serving.failures import generation_error
from textmill_router.serving.room import check_room, queue_full
from textmill_router.serving.service import Service
from textmill_router.text.events import GenerationFailed
from textmill_router.tracing.call_trace import CLIENT_LEFT

log = logging.getLogger(__name__)


async def serve(service: Service, scope: Scope, send: Send, answer: Callable[[], Awaitable[None]]) -> None:
    """Run `answer`. An error that `answer` raises before anything was sent becomes the answer of the call."""
    service.metrics.num_requests += 1
    try:
        await answer()
    except ClientLeft:
        service.metrics.on_failure("dropped")
        call = call_of(scope)
        call.error_type = CLIENT_LEFT
        log.info("Dropped", extra=facts_of(call))
    except RequestError as error:
        service.metrics.on_failure(failure_label(error))
        log_refusal(call_of(scope), error)
        await send_error(scope, send, error)
    except Exception:  # a mistake of the server, which the front door answers
        service.metrics.on_failure("incomplete")
        raise


async def refuse(service: Service, scope: Scope, send: Send, error: Exception) -> None:
    """End a call with an error, as `serve` does, in an endpoint that hands other calls on to `serve`."""

    async def fail() -> None:
        raise error

    await serve(service, scope, send, fail)


def log_refusal(call: Call, error: RequestError, word: str = "Refused") -> None:
    """Write the one line of a call that ends with an error. The message may quote the call, so it is left out."""
    kind = error_kind(error)
    call.error_type = kind.error_type
    log.info(word, extra={**facts_of(call), "status": kind.status, "error_type": kind.error_type})


def facts_of(call: Call) -> dict[str, object]:
    """Return the fields of the log that every call has at its end."""
    return {
        "request": call.request_id,
        "trace": call.trace_id,
        "route": call.route,
        "caller": call.caller.name or None,
        "total_ms": round((time.monotonic() - call.arrival_s) * 1000, 1),
    }


@asynccontextmanager
async def admitted(
    service: Service,
    receive: Receive,
    num_sequences: int,
    terms: CallTerms,
    *,
    grammar: Grammar | None = None,
    grammar_field: str = "grammar",
) -> AsyncIterator[None]:
    """Hold the permits of a call while its client stays. A call whose grammar cannot be used gets no permit.

    `grammar_field` is the part of the body that the grammar comes from.

    Raises ClientLeft, ValidationFailed, Overloaded and Recovering, and failures of the engine as RequestError.
    """
    backend = service.open_backend()
    if grammar is None:  # a bad grammar is told as such on a full server too
        check_room(service, backend, num_sequences, terms)
    async with UntilClientLeaves(receive, service.metrics.on_abort):
        if grammar is not None:
            await backend.grammars.check(grammar, field=grammar_field, salt=terms.cache_salt)
            check_room(service, backend, num_sequences, terms)
        with service.permits.hold(num_sequences, terms.caller):
            try:
                yield
            except GenerationFailed as error:
                raise generation_error(error.failure) from error
            except QueueFull as error:
                raise queue_full(service, error) from error
            except EngineUnavailable as error:
                raise ShuttingDown(f"the engine has stopped: {error}", retry_after_s=1) from error


def failure_label(error: RequestError) -> str:
    """Return the value of the label `err`, which has few values, and TGI's where TGI has one."""
    if isinstance(error, ModelLoading):
        return "loading"
    if isinstance(error, ShuttingDown):
        return "shutting_down"
    if isinstance(error, Recovering):
        return "overloaded"
    if isinstance(error, TemplateFailed):
        return "template"
    status = error_kind(error).status
    return {424: "generation", 429: "overloaded", 500: "incomplete", 504: "timeout"}.get(status, "validation")
