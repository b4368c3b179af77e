"""The work of a writing task on `POST /`: texts become requests, token by token or by beams, and results a list."""

import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import msgspec
from starlette.types import Scope, Send

from textmill_router.api.tgi.clean_text import clean_text
from textmill_router.api.tgi.writing_wish import Wish
from textmill_router.errors import OverBudget, ValidationFailed
from textmill_router.http.error_responses import Header
from textmill_router.http.replies import send_reply
from textmill_router.request import Beams, GenerationRequest
from textmill_router.serving.budget import prompt_too_long
from textmill_router.serving.prompts import TokenizedPrompt, choice_parameters, fit, make_request, take_prompt
from textmill_router.serving.route import IncomingCall
from textmill_router.serving.validation import check_text
from textmill_router.text.events import GenerationResult, TextOptions

# Makes the answer of one sequence from the text of the input and the text that was written.
MakeAnswer = Callable[[str, str], msgspec.Struct]


@dataclass(frozen=True, slots=True)
class WritingForm:
    """What the calls of a task have in common. `strips`: blanks around an answer are left out."""

    task: str
    make_answer: MakeAnswer
    strips: bool = True
    cleans: bool = False  # blanks before punctuation are left out (`clean_up_tokenization_spaces`)


class WritingWork:
    """Answers one call by a list of texts."""

    def __init__(self, form: WritingForm, texts: list[str], wish: Wish, call: IncomingCall) -> None:
        self._form = form
        self._texts = texts
        self._wish = wish
        self._record = call.record
        self._backend = call.backend
        self._num_cut = 0
        max_time = wish.checked.max_time
        self._deadline_s = None if max_time is None else call.record.arrival_s + max_time

    async def stream(self, scope: Scope, send: Send) -> None:
        """Fail, because these bodies ask for no stream."""
        raise AssertionError("a writing task is answered whole")

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        intakes = []
        for number, text in enumerate(self._texts, start=1):
            try:
                intakes.append(await self._take(self._wish.prefix + text, text))
            except OverBudget as error:
                error.name_prompt(number, len(self._texts))
                raise
        self._record.note_validated(sum(map(len, self._texts)), intakes)
        if self._wish.beams is None:
            results = await self._write(intakes)
        else:
            results = await self._search(intakes, self._wish.beams)
        flat = [result for of_text in results for result in of_text]
        self._record.note_success(flat)
        form = self._form
        content = msgspec.json.encode(
            [
                form.make_answer(text, self._shown(result.text))
                for text, of_text in zip(self._texts, results, strict=True)
                for result in of_text
            ]
        )
        num_prompt_tokens = sum(len(intake.prompt_ids) for intake in intakes)
        headers = [*self._record.whole_headers(flat, num_prompt_tokens), *self._notes()]
        await send_reply(scope, send, 200, content, headers=headers)

    async def _write(self, intakes: list[TokenizedPrompt]) -> list[list[GenerationResult]]:
        """Write each sequence token by token. Returns the results of each text."""
        parameters = choice_parameters(self._wish.checked.generation, self._wish.num_sequences)
        options = TextOptions(
            (),
            keep_tokens=False,
            deadline_s=self._deadline_s,
            padding_token_id=next(iter(self._backend.facts.eos_token_ids), 0),
        )
        ids = self._wish.decoder_prompt_ids
        requests = [
            [
                make_request(
                    self._backend,
                    intake,
                    one,
                    wants_logprobs=False,
                    wants_prompt_logprobs=False,
                    top_n_tokens=0,
                    terms=self._record.terms,
                    decoder_prompt_ids=ids,
                )
                for one in parameters
            ]
            for intake in intakes
        ]
        async with AsyncExitStack() as stack:
            running = [
                [await stack.enter_async_context(self._record.start(one, options)) for one in of_text]
                for of_text in requests
            ]
            return [[await one.result() for one in of_text] for of_text in running]

    async def _search(self, intakes: list[TokenizedPrompt], beams: Beams) -> list[list[GenerationResult]]:
        """Search the sequences of each text by beams. Returns the results of each text, best first."""
        requests = [self._search_request(intake, beams) for intake in intakes]
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(self._record.start_search(one)) for one in requests]
            return [await one.results() for one in running]

    def _search_request(self, intake: TokenizedPrompt, beams: Beams) -> GenerationRequest:
        """Return the request of a search. Raises ValidationFailed where the pool could not hold the search."""
        facts, generation = self._backend.facts, self._wish.checked.generation
        if intake.media:
            raise ValidationFailed(
                "`parameters.num_beams` must be 1 where a prompt has images", field="parameters.num_beams"
            )
        # A forced first token counts as one of the answer, because it counts in the score of a sequence.
        first, *forced = self._wish.decoder_prompt_ids or (0,)
        if forced:
            sampling = replace(generation.sampling, forced_first_ids=tuple(forced))
            generation = replace(generation, sampling=sampling)
        if generation.min_new_tokens:
            generation = replace(generation, min_new_tokens=generation.min_new_tokens + len(forced))
        if self._deadline_s is not None:
            beams = replace(beams, max_ms=max(1, math.ceil((self._deadline_s - time.monotonic()) * 1000)))
        request = make_request(
            self._backend,
            replace(intake, max_new_tokens=intake.max_new_tokens + len(forced)),
            generation,
            wants_logprobs=False,
            wants_prompt_logprobs=False,
            top_n_tokens=0,
            terms=self._record.terms,
            decoder_prompt_ids=(first,),
            beams=beams,
        )
        num_prompt, num_new = len(request.prompt_ids), request.max_new_tokens
        num_blocks = beams.num_blocks(num_prompt, num_new, facts.block_size)
        if num_blocks > facts.num_blocks:
            raise ValidationFailed(
                f"`parameters.num_beams` {beams.num_beams} with {num_prompt} + {num_new} tokens needs {num_blocks} "
                f"blocks of the KV pool, which has {facts.num_blocks}; ask for fewer beams or `max_new_tokens`",
                field="parameters.num_beams",
            )
        return request

    async def _take(self, text: str, own_text: str) -> TokenizedPrompt:
        """Tokenise a text with its prefix, and cut its end where the call allows. Raises RuleBroken."""
        check_text(own_text)
        wish, backend, ends = self._wish, self._backend, self._wish.text_ends
        if not wish.cuts and ends is None:
            return await take_prompt(backend, text, wish.checked)
        most = backend.limits.max_input_tokens
        if not wish.cuts and backend.tokenizer.cannot_fit(text, most):
            raise prompt_too_long(f"more than {most}", backend.limits)
        ids = (await backend.tokenizer.encode(text, add_special_tokens=ends is None)).ids
        if ends is not None:
            ids = ends.before + ids + ends.behind
        if wish.cuts and len(ids) > most:
            self._num_cut += 1
            num_kept = len(ends.behind) if ends is not None else int(backend.tokenizer.is_special(ids[-1]))
            ids = ids[: most - num_kept] + ids[len(ids) - num_kept :]
        return fit(backend, ids, replace(wish.checked, truncate=None))

    def _shown(self, text: str) -> str:
        text = text.strip() if self._form.strips else text
        return clean_text(text) if self._form.cleans else text

    def _notes(self) -> list[Header]:
        headers: list[Header] = [(b"x-task", self._form.task.encode())]
        if self._num_cut:
            headers.append((b"x-truncated-inputs", b"%d" % self._num_cut))
        if self._wish.warnings:
            names = ", ".join(self._wish.warnings)
            note = f"the checkpoint asks for {names}, which is not served"
            headers.append((b"x-warnings", note.encode("latin-1", "replace")))
        return headers
