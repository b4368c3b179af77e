"""The way of every call that generates, whatever its dialect: from the body to the work that answers it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.errors import RuleBroken
from textmill_router.http.call import call_of
from textmill_router.http.json_body import decode_json, read_body
from textmill_router.http.path_style import PathStyle
from textmill_router.http.unknown_fields import UnknownFields
from textmill_router.request import Adapter, Grammar
from textmill_router.serving.adapters import AskedAdapter
from textmill_router.serving.call import admitted, serve
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.call_record import CallRecord
from textmill_router.serving.call_terms import terms_of
from textmill_router.serving.reply_cache import CacheSlot, send_cached
from textmill_router.serving.room import check_fits
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.trace_notes import call_attributes

Body = TypeVar("Body")


class Work(Protocol):
    """Answers one call whose fields obey the rules. Both methods run while the call's permits are held.

    Both methods may raise RequestError and GenerationFailed as long as nothing has been sent.
    """

    async def stream(self, scope: Scope, send: Send) -> None: ...
    async def answer_whole(self, scope: Scope, send: Send) -> None: ...


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """The objects that a dialect needs beside the body to prepare a call."""

    service: Service
    backend: Backend
    record: CallRecord
    scope: Scope


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A call whose body obeys the rules, with the decisions that are made before its work begins."""

    work: Work
    num_sequences: int  # each sequence needs one permit
    streams: bool
    # The grammar of the answers, or that part of it which no prompt changes; compiled before a permit is taken.
    grammar: Grammar | None = None
    grammar_field: str = "grammar"  # the part of the body that the grammar comes from
    operation: str = "text_completion"  # what a trace calls the work; `chat` for a conversation
    cache_slot: CacheSlot | None = None  # a kept answer is sent in place of the work; None where answers are not kept


class GeneratingRoute(Generic[Body]):
    """An ASGI endpoint, which checks shape and rules, looks for a kept answer, and works under permits.

    `prepare` applies the rules of the dialect to a body and raises RequestError. `style` is the style of the dialect's
    paths, for the table that gives the route its path. `check_model` refuses a body or a path whose model is not
    served, also while the model loads. `wait_for_model` reads from a body whether the call waits for a model that
    loads, and returns None where the body does not say. `priority_of` reads a body's priority, and `adapter_of` the
    adapter that the call asks for, or None for the base model. `reword` puts the body's names of its fields into a
    refusal.
    """

    def __init__(
        self,
        service: Service,
        decoder: "msgspec.json.Decoder[Body]",
        prepare: Callable[[Body, IncomingCall], PreparedCall],
        style: PathStyle,
        *,
        check_model: Callable[[Body, Scope], None] = lambda body, scope: None,
        wait_for_model: Callable[[Body], bool | None] = lambda body: None,
        priority_of: Callable[[Body], int | None] = lambda body: None,
        adapter_of: Callable[[Body, Scope], AskedAdapter | None] = lambda body, scope: None,
        reword: Callable[[Body, RuleBroken], None] = lambda body, error: None,
        refused_fields: Mapping[str, str] = {},
    ) -> None:
        self.style = style
        self._service = service
        self._decoder = decoder
        self._prepare = prepare
        self._check_model = check_model
        self._wait_for_model = wait_for_model
        self._priority_of = priority_of
        self._adapter_of = adapter_of
        self._reword = reword
        self._unknown_fields = UnknownFields(decoder.type, refused_fields)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self._service, scope, send, lambda: self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.permits.check_open()
        data = await read_body(scope, receive, service.payload_limit)
        body = decode_json(data, self._decoder)
        self._unknown_fields.note(data, call_of(scope).route)
        self._check_model(body, scope)
        backend = await ready_backend(service, scope, receive, wait_for_model=self._wait_for_model(body))
        try:
            asked = self._adapter_of(body, scope)
            with service.adapters.hold(asked) as adapter:
                await self._work(body, backend, scope, receive, send, asked=asked, adapter=adapter)
        except RuleBroken as error:
            self._reword(body, error)
            raise

    async def _work(
        self,
        body: Body,
        backend: Backend,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        asked: AskedAdapter | None,
        adapter: Adapter | None,
    ) -> None:
        service = self._service
        call = call_of(scope)
        shares_prefixes = service.settings.shared_prefix_cache
        terms = terms_of(
            call, scope["headers"], self._priority_of(body), shares_prefixes=shares_prefixes, adapter=adapter
        )
        record = CallRecord(service, backend, call, terms)
        prepared = self._prepare(body, IncomingCall(service, backend, record, scope))
        if asked is not None and adapter is None:
            raise service.adapters.not_loaded(asked)
        if call.trace is not None:
            call.trace.attributes |= call_attributes(
                operation=prepared.operation,
                asked_model=getattr(body, "model", None),
                served_model=record.model_name,
                streams=prepared.streams,
            )
        kept = None if prepared.cache_slot is None else prepared.cache_slot.find()
        if kept is not None:
            await send_cached(service, backend, scope, send, kept, streams=prepared.streams, adapter=adapter)
            return
        check_fits(service, prepared.num_sequences, terms.caller)
        record.num_sequences = prepared.num_sequences
        async with admitted(
            service,
            receive,
            prepared.num_sequences,
            terms,
            grammar=prepared.grammar,
            grammar_field=prepared.grammar_field,
        ):
            if adapter is not None:
                service.adapters.registry.note_requests(adapter.name, prepared.num_sequences)
            if prepared.streams:
                await prepared.work.stream(scope, send)
            else:
                await prepared.work.answer_whole(scope, send)
