"""Outputs of the scheduler become text, events and a result. The test plays the engine by hand."""

import asyncio
import math
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textmill_router.engine.engine_loop import OutputSink
from textmill_router.request import (
    Effort,
    Failure,
    FailureCode,
    FinishReason,
    GenerationParameters,
    GenerationRequest,
    PromptLogprobs,
    RequestId,
    RequestOutput,
    TopTokens,
)
from textmill_router.text.events import GenerationFailed, TextOptions, TokenEvent
from textmill_router.text.generation import MAX_WAITING_EVENTS, Generation, start_generation
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import BEGIN, BEGIN_ID, END, END_ID, write_byte_tokenizer


class HandEngine:
    """A stand-in for the engine that remembers the calls of a generation."""

    def __init__(self) -> None:
        self.submitted: list[GenerationRequest] = []
        self.cancelled: list[RequestId] = []
        self.pauses: list[bool] = []

    def submit(self, request: GenerationRequest, sink: OutputSink) -> None:
        self.submitted.append(request)

    def cancel(self, request_id: RequestId) -> None:
        self.cancelled.append(request_id)

    def pause(self, request_id: RequestId, is_paused: bool) -> None:
        assert request_id == 7
        self.pauses.append(is_paused)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("model")
    return Tokenizer.load(write_byte_tokenizer(folder, merges=[(b"a", b"b"), (b"ab", b"c")]))


def make_request(**changes: object) -> GenerationRequest:
    values = {"request_id": RequestId(7), "prompt_ids": array("I", [BEGIN_ID, 65, 66]), "max_new_tokens": 100}
    return GenerationRequest(**(values | {"arrival_s": 1.0} | changes))  # type: ignore[arg-type]


def run_with(
    tokenizer: Tokenizer,
    options: TextOptions,
    body: Callable[[HandEngine, Generation], Awaitable[None]],
    **changes: object,
) -> HandEngine:
    engine = HandEngine()

    async def main() -> None:
        async with start_generation(engine, tokenizer, make_request(**changes), options) as generation:
            await body(engine, generation)

    asyncio.run(asyncio.wait_for(main(), 10))
    return engine


def push(generation: Generation, *ids: int, finish: FinishReason | None = None) -> None:
    """Give the generation one step per id, of which the last may finish."""
    for number, token_id in enumerate(ids, 1):
        last = finish if number == len(ids) else None
        generation.on_output(RequestOutput(RequestId(7), tokens=(token_id,), finish=last))


def test_events_carry_text_of_tokens_and_the_last_one_the_result(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, 104, *"é".encode(), END_ID, finish=FinishReason.EOS)
        events = await generation.next_events()
        assert [(e.index, e.id, e.text, e.is_special, e.released_text) for e in events] == [
            (1, 104, "h", False, "h"),
            (2, 0xC3, "", False, ""),
            (3, 0xA9, "é", False, "é"),
            (4, END_ID, END, True, ""),
        ]
        assert [e.result is None for e in events] == [True, True, True, False]
        result = await generation.result()
        assert result is events[-1].result
        assert (result.text, result.finish_reason) == ("hé", FinishReason.EOS)
        assert (result.num_prompt_tokens, result.num_output_tokens) == (3, 4)
        assert result.tokens == events

    engine = run_with(tokenizer, TextOptions(), body)
    assert engine.cancelled == []


def test_reader_that_waits_is_woken_and_gets_all_tokens_since(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        reader = asyncio.create_task(generation.next_events())
        await asyncio.sleep(0)
        push(generation, 97, 98)
        assert [e.text for e in await reader] == ["a", "b"]
        push(generation, 99)
        assert [e.text for e in await generation.next_events()] == ["c"]

    run_with(tokenizer, TextOptions(), body)


@pytest.mark.parametrize(("keep", "text"), [(True, "one ab"), (False, "one ")])
def test_stop_string_inside_a_token_ends_the_request(tokenizer: Tokenizer, keep: bool, text: str) -> None:
    abc = tokenizer.token_to_id("abc")
    assert abc is not None

    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, *b"one ", abc)
        assert engine.cancelled == [RequestId(7)]
        events = await generation.next_events()
        assert events[-1].text == "abc"  # the text of a token is not cut
        assert "".join(e.released_text for e in events) == text
        result = await generation.result()
        assert (result.text, result.finish_reason) == (text, FinishReason.STOP_STRING)
        assert result.num_output_tokens == 5

    engine = run_with(tokenizer, TextOptions(stop_strings=("ab",), keep_stop_match=keep), body)
    assert engine.cancelled == [RequestId(7)]


@pytest.mark.parametrize(("minimum", "num_tokens", "text"), [(0, 2, ""), (2, 5, "abx"), (3, 5, "abx"), (4, 6, "abxa")])
def test_stop_string_does_not_end_a_request_before_its_minimum(
    tokenizer: Tokenizer, minimum: int, num_tokens: int, text: str
) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        for token_id in b"abxabab":
            if not engine.cancelled:
                push(generation, token_id)
        result = await generation.result()
        assert (result.text, result.num_output_tokens) == (text, num_tokens)
        assert result.finish_reason is FinishReason.STOP_STRING

    parameters = GenerationParameters(min_new_tokens=minimum)
    run_with(tokenizer, TextOptions(stop_strings=("ab", "ba"), keep_stop_match=False), body, parameters=parameters)


STOPS_AT_SPECIALS = [
    # Each row has stop strings, whether the text keeps the match, pieces, text, number of tokens (None: no stop).
    ((BEGIN,), True, ["hi", BEGIN, "x"], "hi", 3),
    ((BEGIN,), False, ["hi", BEGIN, "x"], "hi", 3),
    (("never", BEGIN, "x"), False, ["hi", BEGIN, "x"], "hi", 3),
    ((END,), True, ["hi", BEGIN, "x", END], "hix", 5),
    ((f"i{BEGIN}x",), True, ["hi", BEGIN, "xy"], "hix", 4),
    ((f"i{BEGIN}x",), False, ["hi", BEGIN, "xy"], "h", 4),
    ((f"{BEGIN}x",), False, ["hi", BEGIN, "yz"], "hiyz", None),
    ((f"{BEGIN}{BEGIN}",), False, ["h", BEGIN, "i", BEGIN, BEGIN], "hi", 5),
    (("ix",), True, ["hi", BEGIN, "xy"], "hixy", None),
]


@pytest.mark.parametrize(("stops", "keep", "pieces", "text", "num_tokens"), STOPS_AT_SPECIALS)
def test_stop_strings_match_special_tokens_that_answers_do_not_show(
    tokenizer: Tokenizer, stops: tuple[str, ...], keep: bool, pieces: list[str], text: str, num_tokens: int | None
) -> None:
    """As in TGI, the text with special tokens is searched, and the answer is the text without special tokens."""
    special = {BEGIN: [BEGIN_ID], END: [END_ID]}
    ids = [token_id for piece in pieces for token_id in special.get(piece, list(piece.encode()))]

    async def body(engine: HandEngine, generation: Generation) -> None:
        for token_id in ids:
            if not engine.cancelled:
                push(generation, token_id)
        if num_tokens is None:
            assert engine.cancelled == []
            push(generation, END_ID, finish=FinishReason.EOS)
        result = await generation.result()
        reason = FinishReason.EOS if num_tokens is None else FinishReason.STOP_STRING
        assert (result.text, result.finish_reason) == (text, reason)
        assert result.num_output_tokens == (num_tokens or len(ids) + 1)

    run_with(tokenizer, TextOptions(stop_strings=stops, keep_stop_match=keep), body)


@pytest.mark.parametrize("finish", [FinishReason.EOS, FinishReason.STOP_ID])
def test_a_token_that_ends_the_text_by_itself_keeps_its_reason(tokenizer: Tokenizer, finish: FinishReason) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, *b"hi", END_ID, finish=finish)
        assert (await generation.result()).finish_reason is finish

    run_with(tokenizer, TextOptions(stop_strings=(END,)), body)


STOPS_AT_THE_END = [
    # Each row has stop strings, whether the text keeps the match, the text, and whether a stop string ended the text.
    ((f"i{END}",), False, "h", True),
    ((f"hi{END}",), False, "", True),
    ((f"i{END[:2]}", END), False, "h", True),
    ((f"i{END}",), True, "hi", False),  # TGI: the end of the text is looked at before stop strings
    ((f"x{END}", f"i{END}x"), False, "hi", False),
    ((END,), False, "hi", False),
    ((END[1:3], "ix"), False, "hi", False),
]


@pytest.mark.parametrize("finish", [FinishReason.EOS, FinishReason.STOP_ID])
@pytest.mark.parametrize(("stops", "keep", "text", "is_stopped"), STOPS_AT_THE_END)
def test_stop_string_that_the_end_completes_is_left_out(
    tokenizer: Tokenizer, stops: tuple[str, ...], keep: bool, text: str, is_stopped: bool, finish: FinishReason
) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, *b"hi", END_ID, finish=finish)
        assert "".join(event.released_text for event in await generation.next_events()) == text
        result = await generation.result()
        assert (result.text, result.num_output_tokens) == (text, 3)
        assert result.finish_reason is (FinishReason.STOP_STRING if is_stopped else finish)
        own = END_ID if finish is FinishReason.STOP_ID else None
        assert result.stopped_by == (stops[0] if is_stopped else own)

    run_with(tokenizer, TextOptions(stop_strings=stops, keep_stop_match=keep), body)


def test_tokens_after_a_stop_string_in_the_same_output_do_not_count(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        output = RequestOutput(RequestId(7), tokens=(120, 46, 121), finish=FinishReason.LENGTH)
        generation.on_output(output)
        result = await generation.result()
        assert (result.text, result.num_output_tokens) == ("x.", 2)
        assert result.finish_reason is FinishReason.STOP_STRING

    run_with(tokenizer, TextOptions(stop_strings=(".",)), body)


def test_held_text_and_incomplete_character_come_with_the_last_event(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, *b"xE", 0xC3, finish=FinishReason.LENGTH)
        events = await generation.next_events()
        assert [e.released_text for e in events] == ["x", "", "E\ufffd"]
        assert (await generation.result()).text == "xE\ufffd"

    run_with(tokenizer, TextOptions(stop_strings=("END",), keep_stop_match=False), body)


def test_held_text_comes_with_a_last_token_that_has_none(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, *b"xEN", END_ID, finish=FinishReason.EOS)
        events = await generation.next_events()
        assert [e.released_text for e in events] == ["x", "", "", "EN"]
        assert (await generation.result()).text == "xEN"

    run_with(tokenizer, TextOptions(stop_strings=("END",), keep_stop_match=False), body)


def test_stop_string_on_the_last_allowed_token_wins_over_length(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, *b"x.", finish=FinishReason.LENGTH)
        assert (await generation.result()).finish_reason is FinishReason.STOP_STRING
        assert engine.cancelled == []  # the request has ended in the shard already

    run_with(tokenizer, TextOptions(stop_strings=(".",)), body)


def test_stop_id_is_no_text_though_its_token_is_not_special(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, 104, 0xC3, 65, finish=FinishReason.STOP_ID)
        events = await generation.next_events()
        assert [(e.text, e.released_text) for e in events] == [("h", "h"), ("", ""), ("\ufffd", "\ufffd")]
        result = await generation.result()
        assert (result.text, result.stopped_by) == ("h\ufffd", 65)

    run_with(tokenizer, TextOptions(), body)


def test_result_without_details_keeps_no_tokens(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        reader = asyncio.create_task(generation.result())
        await asyncio.sleep(0)
        push(generation, *b"abc", finish=FinishReason.LENGTH)
        result = await reader
        assert (result.text, result.num_output_tokens, result.tokens) == ("abc", 3, [])
        with pytest.raises(AssertionError):  # no events were made
            await generation.next_events()

    run_with(tokenizer, TextOptions(keep_tokens=False), body)


def test_logprobs_top_tokens_and_prompt_tokens(tokenizer: Tokenizer) -> None:
    def top(*ids: int) -> TopTokens:
        return TopTokens(array("I", ids), array("f", [-float(i) for i in range(len(ids))]))

    async def body(engine: HandEngine, generation: Generation) -> None:
        first = PromptLogprobs(1, array("f", [-0.25]), (top(65, END_ID),))
        generation.on_output(RequestOutput(RequestId(7), prompt_logprobs=first))
        last = RequestOutput(
            RequestId(7),
            tokens=(97,),
            logprobs=(-0.5,),
            top_tokens=(top(97, 98),),
            prompt_logprobs=PromptLogprobs(2, array("f", [-0.75]), (top(66),)),
            finish=FinishReason.LENGTH,
            effort=Effort(num_cached_tokens=16, admitted_s=3.0),
        )
        generation.on_output(last)
        result = await generation.result()
        (event,) = result.tokens
        assert event.logprob == -0.5
        assert [(t.id, t.text, t.logprob, t.is_special) for t in event.top_tokens] == [
            (97, "a", 0.0, False),
            (98, "b", -1.0, False),
        ]
        assert [(p.id, p.text, p.logprob) for p in result.prompt_tokens] == [
            (BEGIN_ID, "<|begin|>", None),
            (65, "A", -0.25),
            (66, "B", -0.75),
        ]
        assert [t.text for t in result.prompt_tokens[1].top_tokens] == ["A", END]
        assert (result.num_cached_tokens, result.queue_s) == (16, 2.0)

    run_with(tokenizer, TextOptions(), body, wants_logprobs=True, top_n_tokens=2, wants_prompt_logprobs=True)


def test_a_placeholder_of_an_image_has_no_logprob(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        none = TopTokens(array("I"), array("f"))
        piece = PromptLogprobs(
            1, array("f", [float("nan"), -0.75]), (none, TopTokens(array("I", [66]), array("f", [-1])))
        )
        last = RequestOutput(RequestId(7), tokens=(97,), prompt_logprobs=piece, finish=FinishReason.LENGTH)
        generation.on_output(last)
        tokens = (await generation.result()).prompt_tokens
        assert [token.logprob for token in tokens] == [None, None, -0.75]
        assert [len(token.top_tokens) for token in tokens] == [0, 0, 1]

    run_with(tokenizer, TextOptions(), body, wants_prompt_logprobs=True, prompt_top_n_tokens=1)


def test_logprob_that_nobody_asked_for_is_nan(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, 97)
        (event,) = await generation.next_events()
        assert math.isnan(event.logprob)

    run_with(tokenizer, TextOptions(), body)


def test_failure_comes_after_the_tokens_before_it(tokenizer: Tokenizer) -> None:
    failure = Failure(FailureCode.NOT_FINITE, "logits are not finite")

    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, 97)
        generation.on_output(RequestOutput(RequestId(7), failure=failure))
        assert [e.text for e in await generation.next_events()] == ["a"]
        for wait in (generation.next_events, generation.result):
            with pytest.raises(GenerationFailed, match="not finite") as caught:
                await wait()
            assert caught.value.failure is failure

    engine = run_with(tokenizer, TextOptions(), body)
    assert engine.cancelled == []


def test_failure_wakes_a_waiting_reader(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        reader: asyncio.Task[list[TokenEvent]] = asyncio.create_task(generation.next_events())
        await asyncio.sleep(0)
        generation.on_output(RequestOutput(RequestId(7), failure=Failure(FailureCode.SHUTDOWN, "stopping")))
        with pytest.raises(GenerationFailed):
            await reader

    run_with(tokenizer, TextOptions(), body)


def test_leaving_the_context_cancels_what_still_runs(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, 97)

    assert run_with(tokenizer, TextOptions(), body).cancelled == [RequestId(7)]


def test_shown_special_token_stands_in_the_text_after_a_broken_character(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        push(generation, 0xC3, END_ID, 65, finish=FinishReason.LENGTH)
        events = await generation.next_events()
        assert [event.released_text for event in events] == ["", "\N{REPLACEMENT CHARACTER}" + END, "A"]
        assert events[-1].result is not None
        assert events[-1].result.text == "\N{REPLACEMENT CHARACTER}" + END + "A"

    shown = tokenizer.special_ids_of({END, "no token"})
    assert shown == {END_ID}
    run_with(tokenizer, TextOptions(shown_specials=shown), body)


def test_request_rests_while_many_events_wait_and_goes_on_when_they_are_taken(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        for number in range(1, MAX_WAITING_EVENTS + 20):
            generation.on_output(RequestOutput(RequestId(7), tokens=(65,)))
            assert engine.pauses == ([] if number < MAX_WAITING_EVENTS else [True]), number
        assert len(await generation.next_events()) == MAX_WAITING_EVENTS + 19
        assert engine.pauses == [True, False]
        generation.on_output(RequestOutput(RequestId(7), tokens=(65,)))
        assert len(generation.take_events()) == 1
        assert engine.pauses == [True, False]

    run_with(tokenizer, TextOptions(), body, max_new_tokens=10_000)


def test_request_whose_result_is_wanted_never_rests(tokenizer: Tokenizer) -> None:
    async def body(engine: HandEngine, generation: Generation) -> None:
        whole = asyncio.create_task(generation.result())
        await asyncio.sleep(0)
        for _ in range(2 * MAX_WAITING_EVENTS):
            generation.on_output(RequestOutput(RequestId(7), tokens=(65,)))
        generation.on_output(RequestOutput(RequestId(7), tokens=(65,), finish=FinishReason.LENGTH))
        assert (await whole).num_output_tokens == 2 * MAX_WAITING_EVENTS + 1
        assert engine.pauses == []

    run_with(tokenizer, TextOptions(), body, max_new_tokens=10_000)
