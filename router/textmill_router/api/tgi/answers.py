"""Writes tokens and results as TGI's dialect has them, in whole answers and in events of a stream."""

from json.encoder import encode_basestring

import msgspec

from textmill_router.api.tgi.types import (
    BestOfSequence,
    Details,
    GenerateAnswer,
    PrefillToken,
    StreamDetails,
    TgiFinish,
    Token,
)
from textmill_router.request import FinishReason
from textmill_router.serving.logprobs import mean_logprob, shown_logprob
from textmill_router.serving.timings import timings_member, timings_of
from textmill_router.text.events import GenerationResult, TokenEvent, TopToken

FINISH_REASONS: dict[FinishReason, TgiFinish] = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "eos_token",
    FinishReason.STOP_ID: "eos_token",
    FinishReason.STOP_STRING: "stop_sequence",
}
# Makes a JSON string of a text, with the C function behind `json.dumps`, and escapes no character that UTF-8 can hold.
_quote = encode_basestring


class TgiEvents:
    """Writes the events of one stream. Only text, ids and numbers are encoded for each token."""

    __slots__ = ("_prompt", "_seed", "_wants_details", "_wants_timings", "_wants_top_tokens")

    def __init__(
        self,
        *,
        prompt: str,
        seed: int | None,
        wants_details: bool,
        wants_top_tokens: bool,
        wants_timings: bool = False,
    ) -> None:
        self._prompt = prompt  # put before the text; empty unless the full text is wanted
        self._seed = seed
        self._wants_details = wants_details
        self._wants_top_tokens = wants_top_tokens
        self._wants_timings = wants_timings

    def encode(self, events: list[TokenEvent]) -> bytes:
        """Return all events in one piece, each as a `data:` line and a blank line."""
        if len(events) == 1:
            return self._encode_one(events[0]).encode("utf-8", "replace")
        return "".join([self._encode_one(event) for event in events]).encode("utf-8", "replace")

    def _encode_one(self, event: TokenEvent) -> str:
        logprob = event.logprob
        shown = f"{logprob:.8g}" if -1e30 < logprob < 1e30 else "null"  # also false for NaN
        head = (
            f'data: {{"index":{event.index},"token":{{"id":{event.id},"text":{_quote(event.text)},'
            f'"logprob":{shown},"special":{"true" if event.is_special else "false"}}},'
        )
        if self._wants_top_tokens:
            head += f'"top_tokens":{_as_json([_top_token(top) for top in event.top_tokens])},'
        if event.result is None:
            return head + '"generated_text":null,"details":null}\n\n'
        return head + self._encode_end(event.result)

    def _encode_end(self, result: GenerationResult) -> str:
        details = "null"
        if self._wants_details:
            details = _as_json(
                StreamDetails(
                    finish_reason=FINISH_REASONS[result.finish_reason],
                    generated_tokens=result.num_output_tokens,
                    seed=self._seed,
                    input_length=result.num_prompt_tokens,
                )
            )
        timings = timings_member([result]) if self._wants_timings else ""
        return f'"generated_text":{_quote(self._prompt + result.text)},"details":{details}{timings}}}\n\n'


def whole_answer(
    results: list[GenerationResult],
    seeds: list[int | None],
    *,
    prompt: str,
    wants_details: bool,
    wants_top_tokens: bool,
    wants_timings: bool = False,
) -> GenerateAnswer:
    """Return the best of the results, with the others in its details. `prompt` is put before each text."""
    best, *others = sorted(range(len(results)), key=lambda index: -mean_logprob(results[index]))
    answer_text = prompt + results[best].text
    timings = timings_of(results) if wants_timings else msgspec.UNSET
    if not wants_details:
        return GenerateAnswer(answer_text, timings=timings)
    sequences = [
        BestOfSequence(
            generated_text=prompt + results[index].text,
            finish_reason=FINISH_REASONS[results[index].finish_reason],
            generated_tokens=results[index].num_output_tokens,
            seed=seeds[index],
            prefill=_prefill(results[index]),
            tokens=_tokens(results[index]),
            top_tokens=_top_tokens(results[index]) if wants_top_tokens else msgspec.UNSET,
        )
        for index in others
    ]
    result = results[best]
    details = Details(
        finish_reason=FINISH_REASONS[result.finish_reason],
        generated_tokens=result.num_output_tokens,
        seed=seeds[best],
        prefill=_prefill(result),
        tokens=_tokens(result),
        best_of_sequences=sequences or msgspec.UNSET,
        top_tokens=_top_tokens(result) if wants_top_tokens else msgspec.UNSET,
    )
    return GenerateAnswer(answer_text, details, timings)


def _prefill(result: GenerationResult) -> list[PrefillToken]:
    return [PrefillToken(token.id, token.text, shown_logprob(token.logprob)) for token in result.prompt_tokens]


def _tokens(result: GenerationResult) -> list[Token]:
    return [Token(token.id, token.text, shown_logprob(token.logprob), token.is_special) for token in result.tokens]


def _top_tokens(result: GenerationResult) -> list[list[Token]]:
    return [[_top_token(top) for top in token.top_tokens] for token in result.tokens]


def _top_token(top: TopToken) -> Token:
    return Token(top.id, top.text, shown_logprob(top.logprob), top.is_special)


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
