"""POST /v1/chat/completions: from a conversation to an answer, whole or in chunks."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from starlette.types import Scope, Send

from textmill_router.api.openai.chat_answers import ChatChunks, Choice, ShownLogprobs, usage_chunk, whole_answer
from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_tools import tool_choice_of
from textmill_router.api.openai.chat_types import CHAT_NAMES, ChatBody, requested_chat
from textmill_router.api.openai.response_format import RESPONSE_FORMAT, check_answer, grammar_of
from textmill_router.api.openai.route import DONE, checked_parameters, new_envelope, openai_route
from textmill_router.api.openai.types import check_n, usage_of
from textmill_router.chat.answer_form import AnswerForm, PlainReader, TextReader, answer_form, grammar_for, was_cut
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.render import render
from textmill_router.chat.tools import ToolChoice
from textmill_router.errors import ToolError
from textmill_router.grammar.request_forms import AskedGrammar
from textmill_router.http.event_stream import EventStream
from textmill_router.http.replies import send_reply
from textmill_router.parsers.deltas import collect
from textmill_router.request import GenerationRequest, Grammar
from textmill_router.serving.choice_streams import start_all, stream_choices
from textmill_router.serving.prompts import choice_parameters, make_request, share_prompt, take_pieces
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Service
from textmill_router.serving.stream_answer import stream_answer
from textmill_router.serving.validation import CheckedParameters
from textmill_router.text.events import GenerationResult, TextOptions
from textmill_router.text.generation import Generation


def chat_route(service: Service) -> GeneratingRoute[ChatBody]:
    """An ASGI endpoint."""
    return openai_route(service, ChatBody, _prepare, CHAT_NAMES)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A body whose fields obey the rules; nothing is rendered yet."""

    body: ChatBody
    checked: CheckedParameters  # `best_of` is the number of choices
    chat: ChatRequest
    tools: ToolChoice | None
    content_grammar: AskedGrammar | None  # of the response format
    form: AnswerForm  # of the answers, but for what the prompt decides
    grammar: Grammar | None  # of the answers, but for their reasoning

    @property
    def grammar_field(self) -> str:
        """The field from which the grammar comes."""
        return "tools" if self.content_grammar is None else RESPONSE_FORMAT


def _prepare(body: ChatBody, call: IncomingCall) -> PreparedCall:
    num_choices = check_n(body.n, call.service.settings.max_n)
    checked = checked_parameters(requested_chat(body), call.backend)
    tools = tool_choice_of(body)
    content_grammar = grammar_of(body.response_format)
    if tools is not None and content_grammar is not None:
        raise ToolError(
            "`response_format` and `tools` exclude each other: leave one out, or set `tool_choice` to `none`",
            field="response_format",
        )
    chat, backend = chat_request(body), call.backend
    form = answer_form(backend.chat_templates.pick(has_tools=tools is not None), tools, call.service.format_flags)
    asked = _Asked(
        body,
        replace(checked, best_of=num_choices),
        chat,
        tools,
        content_grammar,
        form,
        grammar_for(content_grammar, tools, form.without_reasoning(), backend.tokenizer),
    )
    return PreparedCall(
        _Work(call, asked),
        num_sequences=num_choices,
        streams=bool(body.stream),
        grammar=asked.grammar,
        grammar_field=asked.grammar_field,
    )


class _Work:
    """One call."""

    def __init__(self, call: IncomingCall, asked: _Asked) -> None:
        self._service = call.service
        self._backend = call.backend
        self._record = call.record
        self._body = asked.body
        self._checked = asked.checked
        self._asked = asked
        self._form = asked.form
        self._grammar = asked.grammar
        self._wants_logprobs = bool(asked.body.logprobs)
        self._shown_specials: frozenset[int] = frozenset()
        self._envelope = new_envelope(call.service, "chatcmpl-")

    async def stream(self, scope: Scope, send: Send) -> None:
        """Chunks of all choices as they come."""
        requests = await self._requests()
        await stream_answer(scope, send, self._record, lambda stream: self._write(stream, requests), end=DONE)

    async def _write(self, stream: EventStream, requests: Sequence[GenerationRequest]) -> bytes:
        async with AsyncExitStack() as stack:
            generations = await self._start(stack, requests, keep_tokens=False)
            writers = [self._chunks(index) for index in range(len(requests))]
            results = await stream_choices(stream, generations, writers, self._check)
            self._record.note_success(results)
        return usage_chunk(self._envelope, usage_of(results)) if self._body.wants_usage_event else b""

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        """One answer when all choices are complete."""
        requests = await self._requests()
        async with AsyncExitStack() as stack:
            generations = await self._start(stack, requests, keep_tokens=self._wants_logprobs)
            results = [await generation.result() for generation in generations]
        for result in results:
            self._check(result)
        usage = usage_of(results)
        answer = whole_answer(self._envelope, [self._choice(result) for result in results], usage)
        self._record.note_success(results)
        headers = self._record.whole_headers(results, usage.prompt_tokens)
        await send_reply(scope, send, 200, answer, headers=headers)

    async def _requests(self) -> list[GenerationRequest]:
        """Render, tokenise, check the budget: the last step in which the call can be refused for what it says."""
        asked, backend = self._asked, self._backend
        prompt = await render(backend.chat_templates, backend.role_safety, asked.chat, asked.tools)
        intake = await take_pieces(backend, prompt.pieces, self._checked)
        await self._read_by(prompt.text)
        self._record.note_validated(sum(map(len, prompt.pieces)), [intake])
        generation = replace(self._checked.generation, grammar=self._grammar)
        return share_prompt(
            [
                make_request(
                    backend,
                    intake,
                    parameters,
                    wants_logprobs=self._wants_logprobs,
                    wants_prompt_logprobs=False,
                    top_n_tokens=self._checked.top_n_tokens,
                )
                for parameters in choice_parameters(generation, self._checked.best_of)
            ]
        )

    async def _read_by(self, prompt: str) -> None:
        """Settle how the answers to this prompt are read, and what is enforced. Raises ValidationFailed."""
        asked, backend = self._asked, self._backend
        self._form = asked.form.behind(prompt)
        self._shown_specials = backend.tokenizer.special_ids_of(self._form.markers)
        if asked.grammar is not None and asked.form.reasoning is not None:
            grammar = grammar_for(asked.content_grammar, asked.tools, self._form, backend.tokenizer)
            assert grammar is not None
            await backend.grammars.check(grammar, field=asked.grammar_field)
            self._grammar = grammar

    async def _start(
        self, stack: AsyncExitStack, requests: Sequence[GenerationRequest], *, keep_tokens: bool
    ) -> list[Generation]:
        options = TextOptions(self._checked.stop, False, keep_tokens, self._shown_specials)
        return await start_all(stack, self._backend, requests, options)

    def _chunks(self, index: int) -> ChatChunks:
        return ChatChunks(self._envelope, index, self._new_reader(), self._new_logprobs())

    def _choice(self, result: GenerationResult) -> Choice:
        reader = self._new_reader()
        message = collect([*reader.push(result.text), *reader.finish(was_cut(result))])
        logprobs = self._new_logprobs()
        entries = None if logprobs is None else logprobs.push(result.tokens)
        return Choice(message, reader.is_in_call, entries, result)

    def _new_reader(self) -> TextReader:
        return PlainReader() if self._form.is_plain else self._form.new_reader()

    def _check(self, result: GenerationResult) -> None:
        """What ended by itself matches the response format. Raises GenerationBroke."""
        if self._asked.content_grammar is not None and not was_cut(result):
            reader = self._new_reader()
            message = collect([*reader.push(result.text), *reader.finish(was_cut=False)])
            check_answer(message.content or "", self._asked.content_grammar)

    def _new_logprobs(self) -> ShownLogprobs | None:
        if not self._wants_logprobs:
            return None
        return ShownLogprobs(self._backend.tokenizer, self._shown_specials, self._checked.top_n_tokens > 0)
