"""The way of every call of a task: from the body to the rows that answer it."""

import asyncio
import logging
import time
from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.openai.model_names import check_model
from textmill_router.api.tasks.call_bodies import CallBody, PickForm, ReadBody
from textmill_router.api.tasks.client_shapes import shapes_for
from textmill_router.api.tasks.info import tasks_of
from textmill_router.api.tasks.long_answer import json_pieces
from textmill_router.api.tasks.wrong_task import wrong_task
from textmill_router.errors import ValidationFailed
from textmill_router.http.call import call_of
from textmill_router.http.error_responses import Header
from textmill_router.http.path_style import ROOT_STYLE, PathStyle
from textmill_router.http.replies import send_pieces, send_reply
from textmill_router.serving.call import serve
from textmill_router.serving.call_options import wants_cache
from textmill_router.serving.call_terms import terms_of
from textmill_router.serving.reply_cache import cache_key
from textmill_router.serving.response_cache import CachedAnswer
from textmill_router.serving.row_call import RowTimes, compute_rows, hold_files, ready_rows
from textmill_router.serving.service import Service
from textmill_router.serving.trace_notes import row_attributes
from textmill_router.tasks.call import Answer, CallNotes, TaskCall
from textmill_router.tasks.forms import FORMS, TaskForm, family_of
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.names import canonical_task
from textmill_router.tasks.pick import pick_form

log = logging.getLogger(__name__)

MAX_WARNING_BYTES = 1000  # of the header


def form_of_shape(service: Service, scope: Scope, body: bytes) -> TaskForm:
    """Return the form that the shape of the body asks for: `POST /`."""
    return pick_form(_task_of(service), body)


def form_of_path(service: Service, scope: Scope, body: bytes) -> TaskForm:
    """Return the form of the task that the path names: /pipeline/{task}. Raises WrongTask."""
    named = scope["path_params"]["task"]
    wanted = canonical_task(named)
    task = _task_of(service)
    family = family_of(task)
    if wanted not in family:
        model = service.row_model
        tasks = family if model is None else tasks_of(task, model)
        raise wrong_task(service, f"the task {named[:64]!r} (a call may ask for {', '.join(tasks)})")
    return FORMS[wanted]


def always(form: TaskForm) -> PickForm:
    """Return a choice that is the same for each body, as on routes of embedding servers."""
    return lambda service, scope, body: form


def _task_of(service: Service) -> str:
    task = service.settings.task
    assert task is not None
    return task


class TaskRoute:
    """An ASGI endpoint. `read` reads the body of a call, and `style` is the style of the dialect's paths."""

    def __init__(self, service: Service, read: ReadBody, style: PathStyle = ROOT_STYLE) -> None:
        self.style = style
        self._service = service
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The style of the path alone would be that of `GET /models/{id}`, which speaks another dialect.
        call_of(scope).error_style = self.style.errors
        await serve(self._service, scope, send, lambda: self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.permits.check_open()
        body = await self._read(service, scope, receive)
        self._check_model(scope, body)
        with hold_files(service, body.data, call_of(scope).caller):
            await self._answer_body(scope, receive, send, body)

    async def _answer_body(self, scope: Scope, receive: Receive, send: Send, body: CallBody) -> None:
        service, settings = self._service, self._service.settings
        backend = await ready_rows(service, scope, receive, wait_for_model=body.options.wait_for_model)
        shapes = shapes_for(scope, settings.task_shapes)
        call = body.form.prepare(body.content, backend.model, shapes)
        key = None
        if service.response_cache.is_on and call.notes.is_repeatable and wants_cache(scope, body.options.use_cache):
            key = cache_key(scope, settings.model_id, call_of(scope).route, call.task, body.identity(), repr(shapes))
            kept = service.response_cache.get(key)
            if kept is not None:
                await self._send_kept(scope, send, backend.model, call, kept)
                return
        terms = terms_of(call_of(scope), scope["headers"], None, shares_prefixes=settings.shared_prefix_cache)
        async with compute_rows(service, backend, receive, call, terms) as (results, times):
            answer = call.answer(results, times.num_tokens)
            pieces = await _encode(answer)
            if key is not None and not answer.is_drawn:
                kept = CachedAnswer(
                    b"".join(pieces),
                    call.num_characters,
                    times.num_tokens,
                    0,
                    answer.media_type,
                    answer.varies_by_client,
                )
                service.response_cache.put(key, kept)
            headers = [*self._headers(scope, backend.model, call, times), *_vary(answer, settings.task_shapes)]
            await send_pieces(scope, send, 200, pieces, content_type=answer.media_type, headers=headers)
            self._note(scope, call, times)

    def _check_model(self, scope: Scope, body: CallBody) -> None:
        """Raise ModelNotFound for a model in the path, or on /v1 in the body, that --strict-model does not let pass."""
        name = scope.get("path_params", {}).get("model")
        if name is None and self.style is not ROOT_STYLE:
            try:
                name = msgspec.json.decode(body.model, type=str | None)
            except msgspec.ValidationError:
                raise ValidationFailed("`model` must be a text", field="model") from None
        check_model(name, self._service)

    def _headers(self, scope: Scope, model: TaskModel, call: TaskCall, times: RowTimes) -> list[Header]:
        total_s = time.monotonic() - call_of(scope).arrival_s
        return [
            *self._first_headers(model, call, times),
            (b"x-compute-time", b"%.6f" % total_s),
            (b"x-total-time", b"%d" % (total_s * 1000)),
            (b"x-queue-time", b"%d" % (times.queue_s * 1000)),
            (b"x-inference-time", b"%d" % (times.inference_s * 1000)),
            *_note_headers(call.notes),
        ]

    def _first_headers(self, model: TaskModel, call: TaskCall, times: RowTimes) -> list[Header]:
        compute_type = self._service.row_compute_type(model.facts).encode("latin-1", "replace")
        return [
            (b"x-compute-type", compute_type),
            *_amount_headers(model, call, times),
            (b"x-task", call.task.encode()),
        ]

    async def _send_kept(self, scope: Scope, send: Send, model: TaskModel, call: TaskCall, kept: CachedAnswer) -> None:
        """Send a kept answer, whose headers say that nothing was queued or computed for the call."""
        self._service.metrics.on_cache_hit()
        times = RowTimes(kept.num_prompt_tokens, 0.0, 0.0)
        vary = _vary(kept, self._service.settings.task_shapes)
        headers = [(b"x-cache", b"hit"), *self._headers(scope, model, call, times), *vary]
        await send_reply(scope, send, 200, kept.body, content_type=kept.media_type, headers=headers)

    def _note(self, scope: Scope, call: TaskCall, times: RowTimes) -> None:
        one = call_of(scope)
        total_s = time.monotonic() - one.arrival_s
        if one.trace is not None:
            one.trace.attributes |= row_attributes(
                call.task,
                model=self._service.settings.model_names[0],
                num_rows=call.num_rows,
                num_tokens=times.num_tokens,
                queue_s=times.queue_s,
            )
        self._service.metrics.on_task(call.task, total_s=total_s, queue_s=times.queue_s, num_tokens=times.num_tokens)
        log.info(
            "Success",
            extra={
                "request": one.request_id,
                "trace": one.trace_id,
                "route": one.route,
                "caller": one.caller.name or None,
                "task": call.task,
                "num_rows": call.num_rows,
                "num_prompt_tokens": times.num_tokens,
                "status": 200,
                "total_ms": round(total_s * 1000, 1),
                "queue_ms": round(times.queue_s * 1000, 1),
                "inference_ms": round(times.inference_s * 1000, 1),
            },
        )


_ENCODER = msgspec.json.Encoder()
LONG_ANSWER_NUMBERS = 200_000  # an answer of more numbers is written by a thread, because it would hold up other calls


async def _encode(answer: Answer) -> list[bytes]:
    """Return the body of an answer in pieces."""
    value = answer.value
    if isinstance(value, bytes):
        return [value]
    if answer.is_long:
        return await asyncio.to_thread(lambda: list(json_pieces(value)))
    is_long = isinstance(value, list) and len(value) > 1 and _num_numbers(value) > LONG_ANSWER_NUMBERS
    return [await asyncio.to_thread(_ENCODER.encode, value) if is_long else _ENCODER.encode(value)]


def _num_numbers(values: Sequence[object]) -> int:
    first = values[0]
    return len(values) * (len(first) if isinstance(first, list) else 1)


def _amount_headers(model: TaskModel, call: TaskCall, times: RowTimes) -> list[Header]:
    """Return how much a call has asked for, in the unit of its task."""
    if model.facts.media == "image":
        return [(b"x-compute-images", b"%d" % call.num_rows)]
    # Nothing is known of the audio of a kept answer.
    length = [(b"x-compute-audio-length", b"%.3f" % times.audio_s)] if times.audio_s else []
    if model.facts.media == "audio":
        return length
    amount = [(b"x-compute-characters", b"%d" % call.num_characters)]
    if not model.facts.media or times.num_tokens:  # a shard of an older version does not tell the tokens of its strings
        amount.append((b"x-prompt-tokens", b"%d" % times.num_tokens))
    return amount + length


def _note_headers(notes: CallNotes) -> list[Header]:
    headers: list[Header] = []
    if notes.num_truncated:
        headers.append((b"x-truncated-inputs", b"%d" % notes.num_truncated))
    if notes.warnings:
        text = "; ".join(notes.warnings).encode("ascii", "backslashreplace")
        headers.append((b"x-warnings", bytes(byte for byte in text[:MAX_WARNING_BYTES] if 32 <= byte < 127)))
    return headers


def _vary(answer: Answer | CachedAnswer, task_shapes: str) -> list[Header]:
    return [(b"vary", b"User-Agent, Origin")] if answer.varies_by_client and task_shapes == "client" else []
