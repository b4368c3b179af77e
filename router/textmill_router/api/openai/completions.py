"""POST /v1/completions, which continues texts as they are, without a chat template."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from msgspec import UNSET, UnsetType
from starlette.types import Scope, Send

from textmill_router.api.openai.answer_grammar import answer_grammar
from textmill_router.api.openai.completion_answers import (
    ChoiceForm,
    ChoiceLogprobs,
    CompletionChoice,
    CompletionChunks,
    completion,
    whole_choice,
)
from textmill_router.api.openai.completion_prompts import (
    CompletionPrompt,
    middle_tokens_for,
    take_completion_prompt,
    take_middle_prompt,
)
from textmill_router.api.openai.completion_types import (
    CompletionBody,
    PromptSource,
    prompts_of,
    requested_completion,
)
from textmill_router.api.openai.prompt_logprobs import check_prompt_logprobs, with_prompt_logprobs
from textmill_router.api.openai.refused_fields import check_refused
from textmill_router.api.openai.route import DONE, checked_parameters, new_envelope, openai_route
from textmill_router.api.openai.token_fields import checked_stop_ids
from textmill_router.api.openai.types import (
    ChunkExtras,
    ChunkTail,
    check_n,
    check_stream_options,
    usage_of,
)
from textmill_router.errors import OverBudget, ValidationFailed
from textmill_router.http.event_stream import EventStream
from textmill_router.http.replies import send_reply
from textmill_router.request import GenerationRequest
from textmill_router.serving.choice_streams import start_all, stream_choices
from textmill_router.serving.logprobs import mean_logprob
from textmill_router.serving.output_check import check_output
from textmill_router.serving.prompts import choice_parameters, make_request, share_prompt
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.stream_answer import stream_answer
from textmill_router.serving.timings import Timings, timings_of
from textmill_router.serving.validation import CheckedParameters
from textmill_router.text.events import GenerationResult, TextOptions
from textmill_router.text.fill_in_middle import MiddleTokens
from textmill_router.text.generation import Generation
from textmill_router.text.tokenization import Tokenizer

# Answers that show more tokens than this with their log-probabilities are put together in a thread.
INLINE_TOKENS = 2000


def completions_route(service: Service) -> GeneratingRoute[CompletionBody]:
    """Return the ASGI endpoint of /v1/completions."""
    return openai_route(service, CompletionBody, _prepare)


@dataclass(frozen=True, slots=True)
class CheckedCompletion:
    """A body whose fields obey the rules and whose prompts are not tokenised yet."""

    body: CompletionBody
    checked: CheckedParameters  # at least one new token, also where none is shown
    sources: list[PromptSource]
    n: int  # choices of a prompt
    best_of: int  # sequences of a prompt
    middle: MiddleTokens | None  # where there is a suffix
    stop_ids: tuple[int, ...]
    grammar_field: str  # the part of the body that the grammar of `checked` comes from


def check_completion(body: CompletionBody, service: Service, backend: Backend) -> CheckedCompletion:
    """Apply the rules of the dialect. Raises RequestError."""
    check_refused(body)
    check_stream_options(body)
    check_prompt_logprobs(body, backend)
    if body.prompt_logprobs is not None and body.echoes and body.wants_logprobs:
        raise ValidationFailed(
            "`prompt_logprobs` must not be set with `echo` and `logprobs`, which show the same; leave it out",
            field="prompt_logprobs",
        )
    settings = service.settings
    sources = prompts_of(body, max_prompts=settings.max_client_batch_size, vocab_size=backend.limits.vocab_size)
    n = check_n(body.n, settings.max_n)
    best_of = _check_best_of(body, n, settings.max_best_of)
    if not body.has_output and not body.echoes:
        raise ValidationFailed("`max_tokens` may be 0 only with `echo`: there would be no text", field="max_tokens")
    checked = checked_parameters(body, requested_completion(body), backend)
    if body.echoes and body.wants_logprobs and backend.facts.has_encoder:
        raise ValidationFailed(
            "`logprobs` must not be set with `echo`: this model reads prompts with an encoder, which rates no tokens",
            field="logprobs",
        )
    if checked.truncate is not None and (body.suffix or (body.echoes and body.wants_logprobs)):
        name = "truncate" if body.truncate_prompt_tokens is None else "truncate_prompt_tokens"
        raise ValidationFailed(f"`{name}` must not be set with `suffix`, nor with `echo` and `logprobs`", field=name)
    middle = None
    if body.suffix:
        if body.echoes:
            raise ValidationFailed("`echo` must be false with `suffix`", field="echo")
        middle = middle_tokens_for(sources, backend.tokenizer)
    grammar = answer_grammar(body)
    grammar_field = "grammar" if grammar is None else grammar.body_field
    stop_ids = checked_stop_ids(body, backend.limits.vocab_size)
    return CheckedCompletion(body, checked, sources, n, best_of, middle, stop_ids, grammar_field)


async def take_prompts(backend: Backend, call: CheckedCompletion, *, cache_salt: bytes) -> list[CompletionPrompt]:
    """Tokenise the prompts with their images, and check their budgets.

    `cache_salt` keeps what is known of images apart by callers. Raises ValidationFailed, and what the reading of images
    raises.
    """
    prompts = []
    for number, source in enumerate(call.sources, start=1):
        try:
            prompts.append(await _take_prompt(backend, call, source, cache_salt))
        except OverBudget as error:
            error.name_prompt(number, len(call.sources))
            raise
    return prompts


async def _take_prompt(
    backend: Backend, call: CheckedCompletion, source: PromptSource, cache_salt: bytes
) -> CompletionPrompt:
    add_special_tokens = call.body.add_special_tokens is not False
    if call.middle is not None:
        assert source.text is not None
        assert call.body.suffix is not None
        return await take_middle_prompt(
            backend,
            source.text,
            call.body.suffix,
            call.middle,
            call.checked,
            add_special_tokens=add_special_tokens,
        )
    return await take_completion_prompt(
        backend,
        source,
        call.checked,
        wants_offsets=call.body.echoes and call.body.wants_logprobs,
        add_special_tokens=add_special_tokens,
        cache_salt=cache_salt,
    )


def _prepare(body: CompletionBody, call: IncomingCall) -> PreparedCall:
    checked_call = check_completion(body, call.service, call.backend)
    return PreparedCall(
        _Work(call, checked_call),
        num_sequences=len(checked_call.sources) * checked_call.best_of,
        streams=bool(body.stream),
        grammar=checked_call.checked.generation.grammar,
        grammar_field=checked_call.grammar_field,
    )


def _check_best_of(body: CompletionBody, n: int, max_best_of: int) -> int:
    best_of = body.best_of
    if best_of is None or best_of == n:
        return n
    if best_of < n:
        raise ValidationFailed(f"`best_of` must be at least `n` {n}, found {best_of}", field="best_of")
    if body.stream:
        raise ValidationFailed(
            f"`best_of` must not be more than `n` {n} when streaming: the best is known at the end", field="best_of"
        )
    if best_of > max_best_of:
        raise ValidationFailed(
            f"`best_of` must be at most {max_best_of} (--max-best-of), found {best_of}", field="best_of"
        )
    return best_of


class _Work:
    """One call. Sequences are in the order of the prompts, with `best_of` sequences for each prompt."""

    def __init__(self, call: IncomingCall, checked_call: CheckedCompletion) -> None:
        self._backend = call.backend
        self._record = call.record
        self._checked_call = checked_call
        self._envelope = new_envelope(call.record, "cmpl-")
        self._record.note_answer_id(self._envelope.id)

    async def stream(self, scope: Scope, send: Send) -> None:
        """Send the chunks of all choices as they come."""
        prompts = await self._prompts()
        await stream_answer(scope, send, self._record, lambda stream: self._write(stream, prompts), end=DONE)

    async def _write(self, stream: EventStream, prompts: Sequence[CompletionPrompt]) -> bytes:
        async with AsyncExitStack() as stack:
            generations = await self._start(stack, self._requests(prompts), keep_tokens=False)
            results = await stream_choices(stream, generations, self._writers(prompts, generations), self._check)
            self._record.note_success(results)
        if not self._checked_call.body.wants_usage_event:
            return b""
        usage = usage_of(self._counted(results), len(prompts))
        return b"data: " + completion(self._envelope, [], usage, self._timings(results)) + b"\n\n"

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        """Send one answer when all sequences are complete, with choices in the order of the prompts."""
        call = self._checked_call
        prompts = await self._prompts()
        is_compared = call.best_of > call.n
        async with AsyncExitStack() as stack:
            requests = self._requests(prompts)
            keep_tokens = call.body.wants_logprobs or call.body.wants_token_ids or is_compared
            generations = await self._start(stack, requests, keep_tokens=keep_tokens)
            results = [await generation.result() for generation in generations]
        for result in results:
            self._check(result)
        num_tokens = sum(len(result.tokens) + len(result.prompt_tokens) for result in results)
        if num_tokens <= INLINE_TOKENS:
            choices = self._choices(prompts, results)
        else:
            choices = await asyncio.to_thread(self._choices, prompts, results)
        counted = self._counted(results)
        usage = usage_of(counted, len(prompts))
        self._record.note_success(results)
        headers = self._record.whole_headers(counted, usage.prompt_tokens)
        answer = completion(self._envelope, choices, usage, self._timings(results))
        await send_reply(scope, send, 200, answer, headers=headers)

    async def _prompts(self) -> list[CompletionPrompt]:
        """Tokenise the prompts and check their budgets. Later steps refuse no call for its fields."""
        prompts = await take_prompts(self._backend, self._checked_call, cache_salt=self._record.terms.cache_salt)
        self._record.note_validated(sum(len(prompt.text) for prompt in prompts), [prompt.intake for prompt in prompts])
        return prompts

    def _requests(self, prompts: Sequence[CompletionPrompt]) -> list[GenerationRequest]:
        """Return the requests. The first of a prompt computes the prompt's log-probabilities for its others."""
        call = self._checked_call
        wants_prompt = call.body.echoes and call.body.wants_logprobs
        requests = []
        for prompt in prompts:
            sequences = [
                make_request(
                    self._backend,
                    prompt.intake,
                    parameters,
                    wants_logprobs=call.body.wants_logprobs or call.best_of > call.n,
                    wants_prompt_logprobs=wants_prompt,
                    top_n_tokens=call.checked.top_n_tokens,
                    terms=self._record.terms,
                    stop_ids=call.stop_ids,
                )
                for parameters in choice_parameters(call.checked.generation, call.best_of)
            ]
            if wants_prompt:
                sequences[0] = replace(sequences[0], prompt_top_n_tokens=call.checked.top_n_tokens)
            if call.middle is not None and not call.checked.generation.ignore_eos:
                num_known = self._backend.limits.vocab_size  # a tokenizer may have more
                stop_ids = tuple(token_id for token_id in call.middle.end_ids if token_id < num_known)
                sequences = [replace(sequence, stop_ids=sequence.stop_ids + stop_ids) for sequence in sequences]
            requests += share_prompt(with_prompt_logprobs(call.body, sequences))
        return requests

    def _timings(self, results: Sequence[GenerationResult]) -> Timings | UnsetType:
        return timings_of(results) if self._checked_call.body.wants_timings else UNSET

    def _check(self, result: GenerationResult) -> None:
        """An output that ended by itself matches the grammar. Raises GenerationBroke."""
        if self._checked_call.body.has_output:
            check_output(result, self._checked_call.checked.asked_grammar)

    async def _start(
        self, stack: AsyncExitStack, requests: Sequence[GenerationRequest], *, keep_tokens: bool
    ) -> list[Generation]:
        keeps_stop = bool(self._checked_call.body.include_stop_str_in_output)
        options = TextOptions(self._checked_call.checked.stop, keep_stop_match=keeps_stop, keep_tokens=keep_tokens)
        return await start_all(stack, self._record, requests, options)

    def _choices(self, prompts: Sequence[CompletionPrompt], results: list[GenerationResult]) -> list[CompletionChoice]:
        call = self._checked_call
        choices: list[CompletionChoice] = []
        for number, prompt in enumerate(prompts):
            own = results[number * call.best_of : (number + 1) * call.best_of]
            prompt_tokens = own[0].prompt_tokens
            if call.best_of > call.n:
                own = sorted(own, key=mean_logprob, reverse=True)[: call.n]
            form = self._form(prompt)
            for result in own:
                choices.append(whole_choice(len(choices), form, result, prompt_tokens))
        return choices

    def _writers(
        self, prompts: Sequence[CompletionPrompt], generations: Sequence[Generation]
    ) -> list[CompletionChunks]:
        n = self._checked_call.n
        return [
            # The first sequence of a prompt has its log-probabilities before any other has a token.
            CompletionChunks(
                self._envelope,
                index,
                self._form(prompts[index // n]),
                generations[index - index % n].prompt_tokens,
                extras=ChunkExtras(self._checked_call.body, prompts[index // n].intake.prompt_ids),
                tail=ChunkTail(self._checked_call.body, len(prompts[index // n].intake.prompt_ids)),
            )
            for index in range(len(generations))
        ]

    def _form(self, prompt: CompletionPrompt) -> ChoiceForm:
        call = self._checked_call
        new_logprobs = None
        if call.body.wants_logprobs:
            tokenizer: Tokenizer = self._backend.tokenizer
            wants_top = call.checked.top_n_tokens > 0
            echoed = len(prompt.text) if call.body.echoes else 0

            def new_logprobs() -> ChoiceLogprobs:
                return ChoiceLogprobs(tokenizer, wants_top=wants_top, echoed_characters=echoed)

        return ChoiceForm(
            prompt,
            call.body.echoes,
            call.body.has_output,
            new_logprobs,
            has_token_ids=call.body.wants_token_ids,
            has_stop_reason=call.body.wants_stop_reason,
            num_prompt_alternatives=call.body.prompt_logprobs,
        )

    def _counted(self, results: list[GenerationResult]) -> list[GenerationResult]:
        """Return the results as usage counts them, without a token that is not shown."""
        if self._checked_call.body.has_output:
            return results
        return [replace(result, num_output_tokens=0) for result in results]
