"""POST / of models with an encoder that write: summarization, translation and text2text-generation.

The calls begin from the checkpoint's own values (`serving/checkpoint_defaults.py`), because users compare the texts
with the model's card.
"""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.tgi.types import NO_OPTIONS
from textmill_router.api.tgi.writing_types import (
    SummaryAnswer,
    TextAnswer,
    TranslationAnswer,
    WritingBody,
    WritingFields,
    WritingParameters,
)
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.error_responses import Header
from textmill_router.http.inner_calls import replay
from textmill_router.http.json_body import ClientLeft, read_body
from textmill_router.http.path_style import ROOT_STYLE
from textmill_router.http.replies import send_reply
from textmill_router.request import GenerationRequest
from textmill_router.serving.call import refuse
from textmill_router.serving.checkpoint_defaults import CheckpointDefaults, CheckpointWriting, read_checkpoint_writing
from textmill_router.serving.prompts import TokenizedPrompt, choice_parameters, fit, make_request, take_prompt
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Service
from textmill_router.serving.validation import CheckedParameters, RequestedParameters, check_parameters, check_text
from textmill_router.text.events import TextOptions
from textmill_router.text.generation import start_generation

WRITING_TASKS = ("text2text-generation", "summarization", "translation")
MAX_SEQUENCES = 10
_ANSWERS: Mapping[str, Callable[[str], msgspec.Struct]] = {
    "summarization": SummaryAnswer,
    "translation": TranslationAnswer,
    "text2text-generation": TextAnswer,
}
_ASKS_FOR_MORE = re.compile(rb'"(stream|details|decoder_input_details)"\s*:\s*true')
_CUTS = (True, "longest_first", "only_first")


def writing_route(service: Service, task: str | None = None) -> GeneratingRoute[WritingBody]:
    """Return the ASGI endpoint of a task; without one, of the server's own task."""
    wanted = task or service.settings.task
    assert wanted in WRITING_TASKS
    files = read_checkpoint_writing(Path(service.settings.model_dir))
    return GeneratingRoute(
        service,
        msgspec.json.Decoder(WritingBody),
        partial(_prepare, wanted, files),
        ROOT_STYLE,
        wait_for_model=lambda body: (body.options or NO_OPTIONS).wait_for_model,
    )


class WritingOrStream:
    """An ASGI endpoint. Calls that ask for a stream, or for details of tokens, are those of text generation."""

    def __init__(self, service: Service, *, whole: ASGIApp, stream: ASGIApp) -> None:
        self._service = service
        self._whole = whole
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._service.permits.check_open()
            data = await read_body(scope, receive, self._service.payload_limit)
        except (ClientLeft, RequestError) as error:
            await refuse(self._service, scope, send, error)
            return
        endpoint = self._stream if _ASKS_FOR_MORE.search(data) else self._whole
        await endpoint(scope, replay(data, receive), send)


@dataclass(frozen=True, slots=True)
class _Wish:
    """The checked wish of a call. Lengths are in tokens of the decoder, its first tokens included."""

    checked: CheckedParameters
    defaults: CheckpointDefaults
    num_sequences: int
    cuts: bool


def _prepare(task: str, files: CheckpointWriting, body: WritingBody, call: IncomingCall) -> PreparedCall:
    parameters = body.parameters or WritingParameters()
    defaults = files.defaults_of(task, _languages(task, files, parameters))
    wish = _read_wish(parameters, defaults, call)
    texts = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    most = call.service.settings.max_client_batch_size
    if not 1 <= len(texts) <= most:
        raise ValidationFailed(
            f"`inputs` must hold 1 to {most} (--max-client-batch-size), found {len(texts)}", field="inputs"
        )
    work = _WritingWork(task, texts, wish, call)
    return PreparedCall(work, num_sequences=len(texts) * wish.num_sequences, streams=False)


def _languages(task: str, files: CheckpointWriting, parameters: WritingParameters) -> str | None:
    """Return the pair of languages as config.json names it. Raises ValidationFailed."""
    source, target = parameters.src_lang, parameters.tgt_lang
    if source is None and target is None:
        return None
    if task != "translation" or source is None or target is None:
        raise ValidationFailed(
            "`parameters.src_lang` and `parameters.tgt_lang` belong together, and to translation", field="parameters"
        )
    pair = f"{source}_to_{target}"
    if pair not in files.translations:
        known = ", ".join(files.translations) or "none; the model translates one pair, which its card names"
        raise ValidationFailed(
            f"`parameters.src_lang` and `parameters.tgt_lang` must be a pair of the model, found {pair[:64]!r}; "
            f"the pairs are {known}",
            field="parameters.src_lang",
        )
    return pair


def _read_wish(parameters: WritingParameters, defaults: CheckpointDefaults, call: IncomingCall) -> _Wish:
    """Return the checked wish. The fields of an inner object win over those beside it. Raises ValidationFailed."""
    given = _merged(parameters)
    _check_ranges(given)
    values: dict[str, float | None] = {name: given.get(name, defaults.values.get(name)) for name in _NUMBERS}
    num_first = len(call.backend.facts.decoder_prompt_ids)
    asks_to_sample = given.get("temperature", 1.0) not in (0.0, 1.0) or bool(given.get("top_k")) or "top_p" in given
    do_sample = _samples(parameters, defaults) or asks_to_sample
    numbers: dict[str, float] = {}
    if do_sample:
        for name, off in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("typical_p", 1.0)):
            value = values[name]
            if value is not None and value != off:
                numbers[name] = int(value) if name == "top_k" else value
    penalty = values["repetition_penalty"]
    if penalty not in (None, 0.0, 1.0):
        assert penalty is not None
        numbers["repetition_penalty"] = penalty
    if "seed" in given:
        numbers["seed"] = int(given["seed"])
    longest, least = _lengths(given, defaults, num_first)
    if longest is not None:
        numbers["max_new_tokens"] = longest
    if least and (longest is None or least <= longest):
        numbers["min_new_tokens"] = least
    num_sequences = int(given.get("num_return_sequences", 1))
    checked = check_parameters(
        RequestedParameters(numbers=numbers, do_sample=do_sample, max_time=given.get("max_time")), call.backend.limits
    )
    if num_sequences > 1 and not checked.generation.sampling.do_sample:
        raise ValidationFailed(
            "`parameters.num_return_sequences` needs sampling, or all sequences are equal; set `do_sample`",
            field="parameters.num_return_sequences",
        )
    return _Wish(checked, defaults, num_sequences, parameters.truncation in _CUTS)


_NUMBERS = ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty")


def _samples(parameters: WritingParameters, defaults: CheckpointDefaults) -> bool:
    """Return whether the call samples by `do_sample`, of the call or else of the checkpoint."""
    for part in (parameters.generation_parameters, parameters.generate_parameters, parameters):
        if part is not None and part.do_sample is not None:
            return part.do_sample
    return defaults.do_sample


def _merged(parameters: WritingParameters) -> dict[str, float]:
    """Return the numbers of a call by name."""
    found: dict[str, float] = {}
    for part in (parameters, parameters.generate_parameters, parameters.generation_parameters):
        if part is not None:
            for field in msgspec.structs.fields(WritingFields):
                value = getattr(part, field.name)
                if value is not None and field.name != "do_sample":
                    found[field.name] = value
    return found


_RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, math.inf),
    "max_length": (1, math.inf),
    "min_length": (0, math.inf),
    "min_new_tokens": (0, math.inf),
    "temperature": (0, 100),
    "top_k": (0, math.inf),
    "top_p": (0, 1),
    "repetition_penalty": (0, 100),
    "max_time": (0, 120),
    "num_return_sequences": (1, MAX_SEQUENCES),
    "num_beams": (1, 8),
}


def _check_ranges(given: Mapping[str, float]) -> None:
    for name, (low, high) in _RANGES.items():
        value = given.get(name)
        if value is not None and not low <= value <= high:
            wanted = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            path = f"parameters.{name}"
            raise ValidationFailed(f"`{path}` must be {wanted}, found {value:g}", field=path)
    if given.get("num_beams", 1) > 1:
        raise ValidationFailed(
            "`parameters.num_beams` must be 1: this server searches no beams; leave the field out",
            field="parameters.num_beams",
        )


def _lengths(given: Mapping[str, float], defaults: CheckpointDefaults, num_first: int) -> tuple[int | None, int]:
    """Return the most and the fewest new tokens. `max_length` and `min_length` count the decoder's first tokens too."""

    def new_tokens(name: str, values: Mapping[str, float]) -> int | None:
        new, whole = values.get(f"{name}_new_tokens"), values.get(f"{name}_length")
        if new is not None:
            return int(new)
        return None if whole is None else int(whole) - num_first

    most, least = new_tokens("max", given), new_tokens("min", given)
    if most is not None and least is not None and least > most:
        raise ValidationFailed(
            f"`parameters.min_length` must not be larger than the longest answer, {most} new tokens, found {least}",
            field="parameters.min_length",
        )
    if most is None:
        most = new_tokens("max", defaults.values)
    if least is None:
        least = new_tokens("min", defaults.values)
    return None if most is None else max(1, most), max(0, least or 0)


class _WritingWork:
    """Answers one call by a list of texts."""

    def __init__(self, task: str, texts: list[str], wish: _Wish, call: IncomingCall) -> None:
        self._task = task
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
        intakes = [await self._take(self._wish.defaults.prefix + text, text) for text in self._texts]
        self._record.note_validated(sum(map(len, self._texts)), intakes)
        parameters = choice_parameters(self._wish.checked.generation, self._wish.num_sequences)
        requests: list[GenerationRequest] = [
            make_request(
                self._backend,
                intake,
                one,
                wants_logprobs=False,
                wants_prompt_logprobs=False,
                top_n_tokens=0,
                terms=self._record.terms,
            )
            for intake in intakes
            for one in parameters
        ]
        options = TextOptions(
            (),
            keep_tokens=False,
            deadline_s=self._deadline_s,
            padding_token_id=next(iter(self._backend.facts.eos_token_ids), 0),
        )
        engine, tokenizer = self._backend.engine, self._backend.tokenizer
        async with AsyncExitStack() as stack:
            running = [
                await stack.enter_async_context(start_generation(engine, tokenizer, request, options))
                for request in requests
            ]
            results = [await one.result() for one in running]
        self._record.note_success(results)
        make = _ANSWERS[self._task]
        content = msgspec.json.encode([make(result.text.strip()) for result in results])
        num_prompt_tokens = sum(len(intake.prompt_ids) for intake in intakes)
        headers = [*self._record.whole_headers(results, num_prompt_tokens), *self._notes()]
        await send_reply(scope, send, 200, content, headers=headers)

    async def _take(self, text: str, own_text: str) -> TokenizedPrompt:
        """Tokenise a text with its prefix, and cut its end where the call allows. Raises RuleBroken."""
        check_text(own_text)
        if not self._wish.cuts:
            return await take_prompt(self._backend, text, self._wish.checked)
        ids = (await self._backend.tokenizer.encode(text)).ids
        most = self._backend.limits.max_input_tokens
        if len(ids) > most:
            self._num_cut += 1
            ends_specially = self._backend.tokenizer.is_special(ids[-1])
            ids = ids[: most - 1] + ids[-1:] if ends_specially else ids[:most]
        return fit(self._backend, ids, replace(self._wish.checked, truncate=None))

    def _notes(self) -> list[Header]:
        headers: list[Header] = [(b"x-task", self._task.encode())]
        if self._num_cut:
            headers.append((b"x-truncated-inputs", b"%d" % self._num_cut))
        if self._wish.defaults.not_served:
            names = ", ".join(self._wish.defaults.not_served)
            headers.append((b"x-warnings", f"the checkpoint asks for {names}, which is not served: greedy".encode()))
        return headers
