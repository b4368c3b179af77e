"""A small dialect that the server does not speak, with messages, tools, events and errors of a shape of its own.

The dialect shows that a new dialect needs `chat/`, `serving/` and `http/`, and no file of the other dialects.
"""

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import msgspec
from starlette.types import Scope, Send
from textmill_router.chat.answer_form import TextReader, was_cut
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.tools import ToolChoice
from textmill_router.errors import RequestError, RuleBroken
from textmill_router.http.error_responses import ErrorStyle, error_event, error_kind
from textmill_router.http.event_stream import EventStream
from textmill_router.http.path_style import PathStyle
from textmill_router.http.replies import send_reply
from textmill_router.parsers.deltas import ContentText, Delta, collect
from textmill_router.parsers.tools.tool_format import ToolSpec
from textmill_router.request import GenerationRequest
from textmill_router.serving.chat_prompts import TokenizedChat, prepare_chat, take_chat
from textmill_router.serving.choice_streams import start_all, stream_choices
from textmill_router.serving.prompts import make_request
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Service
from textmill_router.serving.stream_answer import stream_answer
from textmill_router.serving.validation import RequestedParameters, check_parameters
from textmill_router.text.events import TextOptions, TokenEvent
from textmill_router.text.generation import Generation


class Tool(msgspec.Struct, frozen=True):
    name: str
    input_schema: dict[str, Any]


class MessagesBody(msgspec.Struct, frozen=True):
    max_tokens: int
    messages: list[dict[str, str]]
    tools: list[Tool] = []
    must_call: bool = False
    stream: bool = False


def error_body(error: RequestError) -> bytes:
    return msgspec.json.encode(
        {"type": "error", "error": {"type": error_kind(error).error_type, "message": str(error)}}
    )


STYLE = PathStyle(
    "/v1/messages",
    ErrorStyle(
        status_of=lambda error: error_kind(error).status,
        body_of=error_body,
        event_of=lambda error: b"event: error\n" + error_event(error_body(error)),
    ),
    key_header="x-api-key",
)


def messages_route(service: Service) -> GeneratingRoute[MessagesBody]:
    return GeneratingRoute(service, msgspec.json.Decoder(MessagesBody), _prepare, STYLE, reword=_reword)


def _reword(body: MessagesBody, error: RuleBroken) -> None:
    error.reword({"max_new_tokens": "max_tokens", "inputs": "messages"})


def _prepare(body: MessagesBody, call: IncomingCall) -> PreparedCall:
    work = _Work(body, call)
    return PreparedCall(work, num_sequences=1, streams=body.stream, grammar=work.chat.grammar, grammar_field="tools")


class _Writer:
    """The writer of a stream, with one event for each piece of text. Only whole answers hold tool calls."""

    def __init__(self, reader: TextReader) -> None:
        self._reader = reader

    def encode(self, events: list[TokenEvent]) -> bytes:
        deltas: list[Delta] = self._reader.push("".join(event.released_text for event in events))
        result = events[-1].result
        if result is not None:
            deltas = [*deltas, *self._reader.finish(was_cut(result))]
        texts = [delta.text for delta in deltas if isinstance(delta, ContentText)]
        return b"".join(b"event: text\n" + error_event(msgspec.json.encode({"text": text})) for text in texts)


class _Work:
    def __init__(self, body: MessagesBody, call: IncomingCall) -> None:
        backend = call.backend
        self._call = call
        requested = RequestedParameters(numbers={"max_new_tokens": body.max_tokens})
        self._checked = check_parameters(requested, backend.limits)
        shown: list[dict[str, Any]] = [
            {"type": "function", "function": {"name": tool.name, "parameters": tool.input_schema}}
            for tool in body.tools
        ]
        specs = tuple(ToolSpec(tool.name, tool.input_schema) for tool in body.tools)
        tools = ToolChoice(shown, specs, is_required=body.must_call) if body.tools else None
        flags = call.service.format_flags
        self.chat = prepare_chat(backend, flags, ChatRequest(list(body.messages)), tools=tools, grammar_field="tools")

    async def stream(self, scope: Scope, send: Send) -> None:
        request, taken = await self._take()

        async def write(stream: EventStream) -> bytes:
            async with AsyncExitStack() as stack:
                generations = await self._start(stack, request, taken)
                results = await stream_choices(stream, generations, [_Writer(taken.form.new_reader())])
                self._call.record.note_success(results)
            return b""

        await stream_answer(scope, send, self._call.record, write, end=b"event: stop\ndata: {}\n\n")

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        request, taken = await self._take()
        async with AsyncExitStack() as stack:
            [generation] = await self._start(stack, request, taken)
            result = await generation.result()
        reader = taken.form.new_reader()
        message = collect([*reader.push(result.text), *reader.finish(was_cut(result))])
        self._call.record.note_success([result])
        content: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
        for called in message.tool_calls:
            content.append({"type": "tool_use", "name": called.name, "input": msgspec.json.decode(called.arguments)})
        headers = self._call.record.whole_headers([result], result.num_prompt_tokens)
        await send_reply(scope, send, 200, msgspec.json.encode({"content": content}), headers=headers)

    async def _take(self) -> tuple[GenerationRequest, TokenizedChat]:
        backend = self._call.backend
        taken = await take_chat(backend, self.chat, self._checked, cache_salt=self._call.record.terms.cache_salt)
        self._call.record.note_validated(taken.num_characters, [taken.prompt])
        parameters = replace(self._checked.generation, grammar=taken.grammar)
        wants_none: dict[str, Any] = {"wants_logprobs": False, "wants_prompt_logprobs": False, "top_n_tokens": 0}
        terms = self._call.record.terms
        return make_request(backend, taken.prompt, parameters, terms=terms, **wants_none), taken

    async def _start(self, stack: AsyncExitStack, request: GenerationRequest, taken: TokenizedChat) -> list[Generation]:
        options = TextOptions(self._checked.stop, keep_stop_match=False, shown_specials=taken.shown_specials)
        return await start_all(stack, self._call.record, [request], options)
