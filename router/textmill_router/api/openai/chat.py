"""POST /v1/chat/completions, which answers a conversation, whole or in chunks."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from starlette.types import Scope, Send

from textmill_router.api.openai.answer_grammar import answer_grammar
from textmill_router.api.openai.chat_answers import ChatChunks, Choice, ShownLogprobs, usage_chunk, whole_answer
from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_tools import tool_choice_of
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.openai.prompt_logprobs import (
    check_prompt_logprobs,
    shown_prompt_logprobs,
    with_prompt_logprobs,
)
from textmill_router.api.openai.refused_fields import check_refused_of_chat
from textmill_router.api.openai.route import DONE, checked_parameters, new_envelope, openai_route
from textmill_router.api.openai.token_fields import checked_stop_ids
from textmill_router.api.openai.types import (
    ChunkExtras,
    ChunkTail,
    Usage,
    check_n,
    check_stream_options,
    requested_sampling,
    usage_of,
)
from textmill_router.chat.answer_form import was_cut
from textmill_router.http.event_stream import EventStream
from textmill_router.http.replies import send_reply
from textmill_router.parsers.deltas import collect
from textmill_router.request import GenerationRequest
from textmill_router.serving.chat_prompts import PreparedChat, prepare_chat, take_chat
from textmill_router.serving.choice_streams import start_all, stream_choices
from textmill_router.serving.output_check import check_message
from textmill_router.serving.prompts import choice_parameters, make_request, share_prompt
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.stream_answer import stream_answer
from textmill_router.serving.timings import Timings, timings_of
from textmill_router.serving.validation import CheckedParameters
from textmill_router.text.events import GenerationResult, TextOptions
from textmill_router.text.generation import Generation

INLINE_TOKENS = 200  # of a prompt whose log-probabilities are put together at once; more go to a thread


def chat_route(service: Service) -> GeneratingRoute[ChatBody]:
    """Return the ASGI endpoint of /v1/chat/completions."""
    return openai_route(service, ChatBody, _prepare)


@dataclass(frozen=True, slots=True)
class CheckedChat:
    """A conversation whose fields obey the rules; `best_of` of the parameters is the number of choices."""

    checked: CheckedParameters
    chat: PreparedChat
    stop_ids: tuple[int, ...]


def check_chat(body: ChatBody, service: Service, backend: Backend) -> CheckedChat:
    """Apply the rules of the dialect. Raises RequestError."""
    check_refused_of_chat(body)
    check_stream_options(body)
    check_prompt_logprobs(body, backend)
    num_choices = check_n(body.n, service.settings.max_n)
    checked = checked_parameters(body, requested_sampling(body), backend)
    tools = tool_choice_of(body)
    grammar = answer_grammar(body)
    if tools is not None and tools.is_required:
        grammar = None  # a call has no content
    chat = prepare_chat(
        backend,
        service.format_flags,
        chat_request(body, takes_images=backend.takes_images),
        tools=tools,
        content=None if grammar is None else grammar.grammar,
        grammar_field="tools" if grammar is None else grammar.body_field,
        add_special_tokens=body.add_special_tokens,
    )
    stop_ids = checked_stop_ids(body, backend.limits.vocab_size)
    return CheckedChat(replace(checked, best_of=num_choices), chat, stop_ids)


def _prepare(body: ChatBody, call: IncomingCall) -> PreparedCall:
    checked_chat = check_chat(body, call.service, call.backend)
    return PreparedCall(
        _Work(call, body, checked_chat),
        num_sequences=checked_chat.checked.best_of,
        streams=bool(body.stream),
        operation="chat",
        grammar=checked_chat.chat.grammar,
        grammar_field=checked_chat.chat.grammar_field,
    )


class _Work:
    """One call."""

    def __init__(self, call: IncomingCall, body: ChatBody, checked_chat: CheckedChat) -> None:
        self._backend = call.backend
        self._record = call.record
        self._body = body
        self._checked = checked_chat.checked
        self._chat = checked_chat.chat
        self._form = self._chat.form
        self._stop_ids = checked_chat.stop_ids
        self._wants_logprobs = bool(body.logprobs)
        self._shown_specials: frozenset[int] = frozenset()
        self._envelope = new_envelope(call.record, "chatcmpl-")
        self._record.note_answer_id(self._envelope.id)

    async def stream(self, scope: Scope, send: Send) -> None:
        """Send the chunks of all choices as they come."""
        requests = await self._requests()
        await stream_answer(scope, send, self._record, lambda stream: self._write(stream, requests), end=DONE)

    async def _write(self, stream: EventStream, requests: Sequence[GenerationRequest]) -> bytes:
        async with AsyncExitStack() as stack:
            generations = await self._start(stack, requests, keep_tokens=False)
            writers = [self._chunks(index, request) for index, request in enumerate(requests)]
            results = await stream_choices(stream, generations, writers, self._check)
            self._record.note_success(results)
        if not self._body.wants_usage_event:
            return b""
        return usage_chunk(self._envelope, usage_of(results), self._timings(results))

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        """Send one answer when all choices are complete."""
        requests = await self._requests()
        async with AsyncExitStack() as stack:
            keep_tokens = self._wants_logprobs or self._body.wants_token_ids
            generations = await self._start(stack, requests, keep_tokens=keep_tokens)
            results = [await generation.result() for generation in generations]
        for result in results:
            self._check(result)
        usage = usage_of(results)
        answer = await self._whole_answer(requests, results, usage)
        self._record.note_success(results)
        headers = self._record.whole_headers(results, usage.prompt_tokens)
        await send_reply(scope, send, 200, answer, headers=headers)

    async def _whole_answer(
        self, requests: Sequence[GenerationRequest], results: Sequence[GenerationResult], usage: Usage
    ) -> bytes:
        """Put the answer together, in a thread where it shows many tokens of the prompt."""
        choices = [self._choice(result) for result in results]
        prompt_ids = requests[0].text_ids if self._body.wants_token_ids else None
        timings = self._timings(results)
        num_alternatives, rated = self._body.prompt_logprobs, results[0].prompt_tokens
        if num_alternatives is None:
            return whole_answer(self._envelope, choices, usage, prompt_ids, timings=timings)

        def put_together() -> bytes:
            shown = shown_prompt_logprobs(rated, num_alternatives)
            return whole_answer(self._envelope, choices, usage, prompt_ids, timings=timings, prompt_logprobs=shown)

        return put_together() if len(rated) <= INLINE_TOKENS else await asyncio.to_thread(put_together)

    async def _requests(self) -> list[GenerationRequest]:
        """Render and tokenise the conversation, and check the budget. Later steps refuse no call for its fields."""
        backend = self._backend
        taken = await take_chat(backend, self._chat, self._checked, cache_salt=self._record.terms.cache_salt)
        self._form, self._shown_specials = taken.form, taken.shown_specials
        self._record.note_validated(taken.num_characters, [taken.prompt])
        generation = replace(self._checked.generation, grammar=taken.grammar)
        sequences = [
            make_request(
                backend,
                taken.prompt,
                parameters,
                wants_logprobs=self._wants_logprobs,
                wants_prompt_logprobs=False,
                top_n_tokens=self._checked.top_n_tokens,
                terms=self._record.terms,
                stop_ids=self._stop_ids,
            )
            for parameters in choice_parameters(generation, self._checked.best_of)
        ]
        return share_prompt(with_prompt_logprobs(self._body, sequences))

    async def _start(
        self, stack: AsyncExitStack, requests: Sequence[GenerationRequest], *, keep_tokens: bool
    ) -> list[Generation]:
        options = TextOptions(
            self._checked.stop, bool(self._body.include_stop_str_in_output), keep_tokens, self._shown_specials
        )
        return await start_all(stack, self._record, requests, options)

    def _chunks(self, index: int, request: GenerationRequest) -> ChatChunks:
        extras = ChunkExtras(self._body)
        return ChatChunks(
            self._envelope,
            index,
            self._form.new_reader(),
            self._new_logprobs(),
            tail=ChunkTail(self._body, request.num_input_tokens),
            has_functions=self._body.has_functions,
            extras=None if extras.is_empty else extras,
            prompt_ids=request.text_ids if self._body.wants_token_ids else None,
        )

    def _choice(self, result: GenerationResult) -> Choice:
        reader = self._form.new_reader()
        message = collect([*reader.push(result.text), *reader.finish(was_cut(result))])
        logprobs = self._new_logprobs()
        entries = None if logprobs is None else logprobs.push(result.tokens)
        return Choice(
            message,
            reader.has_unfinished_call,
            entries,
            result,
            has_functions=self._body.has_functions,
            has_token_ids=self._body.wants_token_ids,
            has_stop_reason=self._body.wants_stop_reason,
        )

    def _check(self, result: GenerationResult) -> None:
        """Raise GenerationBroke for an answer that ended by itself and breaks the response format or a binding tool."""
        if self._chat.grammar is not None and not was_cut(result):
            reader = self._form.new_reader()
            message = collect([*reader.push(result.text), *reader.finish(was_cut=False)])
            check_message(message, self._chat.content, self._chat.tools)

    def _timings(self, results: Sequence[GenerationResult]) -> Timings | None:
        return timings_of(results) if self._body.wants_timings else None

    def _new_logprobs(self) -> ShownLogprobs | None:
        if not self._wants_logprobs:
            return None
        return ShownLogprobs(self._backend.tokenizer, self._shown_specials, self._checked.top_n_tokens > 0)
