"""The work of one call of TGI's dialect: prompts become requests, and results become an answer or events."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from enum import Enum

import msgspec
from starlette.types import Scope, Send

from textmill_router.api.tgi.answers import TgiEvents, whole_answer
from textmill_router.api.tgi.types import GenerateAnswer, GenerateBody, TgiParameters
from textmill_router.errors import OverBudget, ValidationFailed
from textmill_router.http.event_stream import EventStream
from textmill_router.http.replies import send_reply
from textmill_router.request import GenerationRequest
from textmill_router.serving.logprobs import mean_logprob
from textmill_router.serving.output_check import check_output
from textmill_router.serving.prompts import (
    TokenizedPrompt,
    best_of_parameters,
    choice_parameters,
    make_request,
    share_prompt,
    take_prompt,
)
from textmill_router.serving.reply_cache import CacheSlot
from textmill_router.serving.response_cache import CachedAnswer
from textmill_router.serving.route import IncomingCall
from textmill_router.serving.stream_answer import stream_answer
from textmill_router.serving.timings import wants_timings
from textmill_router.serving.validation import CheckedParameters
from textmill_router.text.events import GenerationResult, TextOptions, TokenEvent
from textmill_router.text.generation import Generation

_NO_PARAMETERS = TgiParameters()


class GenerateMode(Enum):
    """The three routes, which differ in the shape of the answer and in defaults."""

    WHOLE = "generate"
    STREAM = "generate_stream"
    COMPAT = "compat"  # the body says which; the answer is an array; the prompt is given back by default


def check_batch(body: GenerateBody, checked: CheckedParameters, *, streams: bool, limit: int) -> int:
    """Return how many sequences the call computes. Raises ValidationFailed for fields that exclude each other."""
    num_returned = body.parameters.num_return_sequences if body.parameters else None
    has_list = isinstance(body.inputs, list)
    num_prompts = len(body.inputs) if has_list else 1
    for name, count, is_asked in (
        ("inputs", num_prompts, has_list),
        ("num_return_sequences", num_returned or 0, num_returned is not None),
    ):
        if is_asked and not 1 <= count <= limit:
            what = "must hold" if name == "inputs" else "must be"
            raise ValidationFailed(f"`{name}` {what} 1 to {limit} (--max-client-batch-size), found {count}", field=name)
        if is_asked and (has_list if name == "inputs" else count > 1):
            if streams:
                raise ValidationFailed(f"`{name}` asks for several results, which cannot be streamed", field=name)
            if checked.best_of > 1:
                raise ValidationFailed(f"`{name}` asks for several results: `best_of` must be 1", field=name)
    return num_prompts * max(checked.best_of, num_returned or 1)


class TgiWork:
    """Answers one call, and keeps the answer in `slot` if there is one."""

    def __init__(
        self,
        call: IncomingCall,
        body: GenerateBody,
        checked: CheckedParameters,
        mode: GenerateMode,
        slot: CacheSlot | None,
    ) -> None:
        parameters = body.parameters or _NO_PARAMETERS
        self._record = call.record
        self._backend = backend = call.backend
        self._slot = slot
        self._texts = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        self._checked = checked
        self._num_returned = parameters.num_return_sequences or 1
        self._is_array = mode is GenerateMode.COMPAT or isinstance(body.inputs, list) or self._num_returned > 1
        wants_full_text = parameters.return_full_text
        # Only what continues a text is told with it by default, as where TGI knows the model's task.
        is_told_whole = mode is GenerateMode.COMPAT and not backend.facts.has_encoder
        self._wants_full_text = is_told_whole if wants_full_text is None else wants_full_text
        self._wants_prompt_details = bool(parameters.decoder_input_details)
        self._wants_details = bool(parameters.details) or self._wants_prompt_details
        self._wants_timings = wants_timings(body.textmill)
        self._deadline_s = None if checked.max_time is None else call.record.arrival_s + checked.max_time

    async def stream(self, scope: Scope, send: Send) -> None:
        """Events until the last token; an error after the first of them is an event."""
        [intake] = await self._take_prompts()
        [request] = self._requests(intake, wants_logprobs=True)
        [text] = self._texts
        writer = TgiEvents(
            prompt=self._prefix(text),
            seed=_shown_seed(request),
            wants_details=self._wants_details,
            wants_top_tokens=self._checked.top_n_tokens > 0,
            wants_timings=self._wants_timings,
        )
        written: list[bytes] = []

        def encode_kept(events: list[TokenEvent]) -> bytes:
            data = writer.encode(events)
            written.append(data)
            return data

        encode = writer.encode if self._slot is None else encode_kept

        async def write(stream: EventStream) -> bytes:
            async with self._start(request, keep_tokens=False) as generation:
                result, last = await _write_tokens(stream, generation, encode)
            check_output(result, self._checked.asked_grammar)
            self._record.note_success([result], seed=_shown_seed(request))
            if self._slot is not None:
                self._slot.keep(self._cached(b"".join(written), [intake], [result]))
            return last

        await stream_answer(scope, send, self._record, write)

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        """Send one answer when all sequences are complete."""
        is_compared = self._checked.best_of > 1
        intakes = await self._take_prompts()
        wants_logprobs = self._wants_details or is_compared
        requests = [self._requests(intake, wants_logprobs=wants_logprobs) for intake in intakes]
        async with AsyncExitStack() as stack:
            # All requests are submitted in one turn, so that the first computes a prompt for all that share the prompt.
            generations = [
                [await stack.enter_async_context(self._start(one, keep_tokens=wants_logprobs)) for one in of_prompt]
                for of_prompt in requests
            ]
            results = [[await generation.result() for generation in of_prompt] for of_prompt in generations]
        for rated, *further in results:
            check_output(rated, self._checked.asked_grammar)
            for one in further:
                check_output(one, self._checked.asked_grammar)
                one.prompt_tokens = rated.prompt_tokens
        answers: list[GenerateAnswer] = []
        for text, of_prompt, asked in zip(self._texts, results, requests, strict=True):
            seeds = [_shown_seed(request) for request in asked]
            if is_compared:
                answers.append(self._answer(text, of_prompt, seeds))
            else:
                answers += [self._answer(text, [one], [seed]) for one, seed in zip(of_prompt, seeds, strict=True)]
        first = results[0]
        chosen = max(first, key=mean_logprob) if is_compared else first[0]
        others = [one for of_prompt in results for one in of_prompt if one is not chosen]
        self._record.note_success([chosen, *others], seed=_shown_seed(requests[0][first.index(chosen)]))
        data = msgspec.json.encode(answers if self._is_array else answers[0])
        # The headers count only that sequence of `best_of` which is the answer.
        told = [chosen] if is_compared else [chosen, *others]
        num_prompt_tokens = sum(len(intake.prompt_ids) for intake in intakes)
        if self._slot is not None:
            self._slot.keep(self._cached(data, intakes, told))
        await send_reply(scope, send, 200, data, headers=self._record.whole_headers(told, num_prompt_tokens))

    async def _take_prompts(self) -> list[TokenizedPrompt]:
        """Tokenise the prompts and check the budget. Later steps refuse no call for its fields."""
        intakes = []
        for index, text in enumerate(self._texts):
            try:
                intakes.append(await self._take_prompt(text, f"inputs[{index}]" if len(self._texts) > 1 else "inputs"))
            except OverBudget as error:
                error.name_prompt(index + 1, len(self._texts))
                raise
        self._record.note_validated(sum(map(len, self._texts)), intakes)
        return intakes

    async def _take_prompt(self, text: str, field: str) -> TokenizedPrompt:
        """Tokenise a prompt, whose path in the body is `field`, with its images."""
        backend, checked = self._backend, self._checked
        if backend.images is None:
            return await take_prompt(backend, text, checked)
        found = await backend.images.in_text(text, field=field, salt=self._record.terms.cache_salt)
        return await take_prompt(
            backend,
            "".join(backend.images.parts(found)),
            checked,
            add_special_tokens=found.adds_special_tokens,
            images=found.images,
        )

    def _requests(self, intake: TokenizedPrompt, *, wants_logprobs: bool) -> list[GenerationRequest]:
        """Return the requests of one prompt."""
        checked = self._checked
        if self._num_returned > 1:
            sequences = choice_parameters(checked.generation, self._num_returned)
        else:
            sequences = best_of_parameters(checked)
        return share_prompt(
            [
                make_request(
                    self._backend,
                    intake,
                    parameters,
                    wants_logprobs=wants_logprobs,
                    wants_prompt_logprobs=self._wants_prompt_details,
                    top_n_tokens=checked.top_n_tokens,
                    terms=self._record.terms,
                )
                for parameters in sequences
            ]
        )

    def _start(self, request: GenerationRequest, *, keep_tokens: bool) -> Generation:
        options = TextOptions(
            self._checked.stop,
            keep_tokens=keep_tokens,
            deadline_s=self._deadline_s,
            padding_token_id=next(iter(self._backend.facts.eos_token_ids), 0),
        )
        return self._record.start(request, options)

    def _answer(self, text: str, results: list[GenerationResult], seeds: list[int | None]) -> GenerateAnswer:
        return whole_answer(
            results,
            seeds,
            prompt=self._prefix(text),
            wants_details=self._wants_details,
            wants_top_tokens=self._checked.top_n_tokens > 0,
            wants_timings=self._wants_timings,
        )

    def _prefix(self, text: str) -> str:
        return text if self._wants_full_text else ""

    def _cached(self, body: bytes, intakes: list[TokenizedPrompt], results: list[GenerationResult]) -> CachedAnswer:
        return CachedAnswer(
            body,
            num_characters=sum(map(len, self._texts)),
            num_prompt_tokens=sum(len(intake.prompt_ids) for intake in intakes),
            num_output_tokens=sum(result.num_output_tokens for result in results),
        )


async def _write_tokens(
    stream: EventStream, generation: Generation, encode: Callable[[list[TokenEvent]], bytes]
) -> tuple[GenerationResult, bytes]:
    """Write each token as an event; gives the result, and the last events, which are left to the caller."""

    def write_now(events: list[TokenEvent]) -> bool:
        if not stream.can_write_now:
            return False
        stream.write_now(encode(events))
        return True

    generation.push_to(write_now)
    while True:
        events = await generation.next_events()
        data = encode(events)
        if events[-1].result is not None:
            return events[-1].result, data
        await stream.write(data)


def _shown_seed(request: GenerationRequest) -> int | None:
    sampling = request.parameters.sampling
    return sampling.seed if sampling.do_sample else None
