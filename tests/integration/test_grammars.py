"""Grammars in the step loop over a tiny random llama: each output matches, however the request is run."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from textmill_router.grammar.request_forms import regex_grammar, schema_grammar
from textmill_shard.grammar.fault import GrammarFault
from textmill_shard.grammar.matcher import Matcher, MatcherFactory
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import (
    FLAG_EOS,
    FLAG_LENGTH,
    FLAG_STOP_ID,
    Admit,
    Budget,
    Drop,
    Grammar,
    SlotErrorCode,
)
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.random_schemas import Schema, schemas
from tests.fakes.shard_facts import shard_facts
from tests.fakes.step_harness import WAIT_S, Shard, flags_of, ids
from tests.fakes.tiny_models import VOCAB_SIZE, make_tiny_llama

BLOCK_SIZE = 4
NUM_SLOTS = 9
BLOCKS_PER_SLOT = 64  # 256 tokens
FACTS = shard_facts(
    block_size=BLOCK_SIZE,
    num_blocks=NUM_SLOTS * BLOCKS_PER_SLOT,
    num_slots=NUM_SLOTS,
    max_step_tokens=256,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=(END_ID,),
    features=("prefix_cache", "prompt_logprobs", "grammar"),
)
PERSON: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "yy", "zzz"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WILD = SamplingParams(do_sample=True, temperature=1.5, seed=11)
ALL_AT_ONCE = SamplingParams(
    do_sample=True,
    temperature=1.2,
    top_k=200,
    top_p=0.98,
    min_p=0.0001,
    typical_p=0.99,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    seed=5,
    logit_bias=((ord("7"), 3.0),),
    watermark=True,
    wants_logprobs=True,
    top_n_tokens=2,
)


def of_schema(schema: Schema) -> Grammar:
    return Grammar(schema_grammar(schema, field="schema").whole_output().text)


def of_regex(regex: str) -> Grammar:
    return Grammar(regex_grammar(regex, field="regex").whole_output().text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def runner(folder: Path) -> ModelRunner:
    torch.set_num_threads(1)
    loaded = load_model(LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE), lambda phase, part: None)
    loaded.allocate_kv(FACTS.num_blocks)
    return loaded


@pytest.fixture(scope="module")
def matchers(folder: Path) -> MatcherFactory:
    return MatcherFactory((folder / "tokenizer.json").read_text(), vocab_size=VOCAB_SIZE, eos_token_ids=(END_ID,))


@pytest.fixture(scope="module")
def shard(runner: ModelRunner, matchers: MatcherFactory) -> Iterator[Shard]:
    """A step loop for all tests that leave its slots free."""
    with Shard(facts=FACTS, runner=runner, matchers=matchers) as running:
        yield running


def request(
    slot: int,
    grammar: Grammar | None,
    *,
    prompt: Sequence[int] = tuple(b"say: "),
    num_new: int = 120,
    sampling: SamplingParams = WILD,
    output: Sequence[int] = (),
    cached: int = 0,
    ignore_eos: bool = False,
    stop_ids: Sequence[int] = (),
) -> Admit:
    num_blocks = -(-(len(prompt) + num_new) // BLOCK_SIZE)
    first = slot * BLOCKS_PER_SLOT
    return Admit(
        request_id=1000 + slot,
        slot=slot,
        prompt_ids=ids(prompt),
        output_ids=ids(output),
        num_cached_tokens=cached,
        block_ids=np.arange(first, first + num_blocks),
        max_new_tokens=num_new,
        sampling=sampling,
        stop_ids=tuple(stop_ids),
        ignore_eos=ignore_eos,
        grammar=grammar,
    )


def run(shard: Shard, *admits: Admit, budget: Budget | None = None) -> dict[int, list[int]]:
    """Run these requests, and return the tokens by slot."""
    widest = Budget(FACTS.max_step_tokens, FACTS.max_step_tokens, FACTS.max_step_tokens)
    shard.results.clear()
    # Sampling state belongs to the Admit object, so each request gets a copy.
    shard.send(admits=[replace(admit) for admit in admits], budget=budget or widest)
    tokens = shard.run_to_end(*(admit.slot for admit in admits))
    assert [error for result in shard.results for error in result.errors] == []
    return tokens


def ends_of(shard: Shard, slot: int) -> int:
    return flags_of(shard.results, slot)[-1]


def text_of(tokens: Sequence[int]) -> str:
    """Return the text of output that ended by EOS, for the byte tokenizer."""
    assert tokens[-1] == END_ID
    return bytes(tokens[:-1]).decode()


@pytest.mark.parametrize("sampling", [SamplingParams(), WILD, ALL_AT_ONCE], ids=["greedy", "wild", "all at once"])
def test_output_that_ends_by_eos_is_what_was_asked_for(shard: Shard, sampling: SamplingParams) -> None:
    tokens = run(
        shard,
        request(0, of_schema(PERSON), sampling=sampling),
        request(1, of_regex(r"(\d{1,3}\.){3}\d{1,3}"), sampling=sampling),
        request(2, Grammar('start: "<" ("a" | start)? ">"'), sampling=sampling, num_new=9),
        request(3, None, sampling=replace(sampling, watermark=False), num_new=9),
    )
    Draft202012Validator(PERSON).validate(json.loads(text_of(tokens[0])))
    assert re.fullmatch(r"(\d{1,3}\.){3}\d{1,3}", text_of(tokens[1]))
    assert ends_of(shard, 0) & FLAG_EOS
    assert ends_of(shard, 1) & FLAG_EOS
    assert re.match(rb"<+a?>*", bytes(token for token in tokens[2] if token != END_ID))


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schema=schemas(),
    sampling=st.builds(
        SamplingParams,
        do_sample=st.booleans(),
        temperature=st.sampled_from([0.3, 1.0, 2.5]),
        top_k=st.sampled_from([0, 1, 7]),
        top_p=st.sampled_from([0.5, 1.0]),
        min_p=st.sampled_from([0.0, 0.1]),
        typical_p=st.sampled_from([0.7, 1.0]),
        repetition_penalty=st.sampled_from([0.8, 1.0, 1.4]),
        presence_penalty=st.sampled_from([0.0, 1.5]),
        frequency_penalty=st.sampled_from([0.0, -0.5]),
        logit_bias=st.sampled_from([(), ((ord('"'), 4.0), (END_ID, -9.0))]),
        min_new_tokens=st.sampled_from([0, 12]),
        watermark=st.booleans(),
        seed=st.integers(0, 2**64 - 1),
    ),
    num_new=st.integers(1, 150),
    chunk=st.sampled_from([1, 3, 256]),
)
def test_any_schema_and_any_settings(
    shard: Shard, schema: Schema, sampling: SamplingParams, num_new: int, chunk: int
) -> None:
    budget = Budget(FACTS.max_step_tokens, max_prefill_tokens=2 * chunk, max_chunk_tokens=chunk)
    tokens = run(shard, request(0, of_schema(schema), sampling=sampling, num_new=num_new), budget=budget)[0]
    flags = ends_of(shard, 0)
    if flags & FLAG_EOS:
        Draft202012Validator(schema).validate(json.loads(text_of(tokens)))
    else:
        assert flags & FLAG_LENGTH
        assert len(tokens) == num_new
        assert END_ID not in tokens


@pytest.mark.parametrize("sampling", [WILD, ALL_AT_ONCE], ids=["wild", "all at once"])
def test_a_seeded_request_is_the_same_alone_and_among_eight_others(shard: Shard, sampling: SamplingParams) -> None:
    mine = request(4, of_schema(PERSON), sampling=sampling)
    alone = run(shard, mine)[4]
    grammars = [of_schema(PERSON), None, of_regex("[a-z ]*"), of_schema({"type": "array", "items": {"type": "null"}})]
    others = [
        request(slot, grammars[slot % 4], prompt=range(slot + 1), sampling=replace(sampling, seed=slot), num_new=60)
        for slot in (0, 1, 2, 3, 5, 6, 7, 8)
    ]
    assert run(shard, *others[:4], mine, *others[4:])[4] == alone


def test_rule_25_a_mask_counts_the_token_of_the_step_before(shard: Shard) -> None:
    """Each token alone decides which token may follow, so a mask that is one token late lets wrong pairs through."""
    regex = "(ab|cd|ef|gh){20}"
    tokens = run(shard, request(0, of_regex(regex)), request(1, None), request(2, of_regex(regex)))
    for slot in (0, 2):
        assert re.fullmatch(regex, text_of(tokens[slot]))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunked_prefill_changes_nothing(shard: Shard, chunk: int) -> None:
    mine = request(0, of_schema(PERSON), prompt=range(40))
    budget = Budget(FACTS.max_step_tokens, max_prefill_tokens=2 * chunk, max_chunk_tokens=chunk)
    assert run(shard, mine, budget=budget) == run(shard, mine)


def test_a_cached_prefix_changes_nothing(shard: Shard) -> None:
    mine = request(0, of_schema(PERSON), prompt=range(40))
    whole = run(shard, mine)
    assert run(shard, replace(mine, num_cached_tokens=36)) == whole  # the blocks of the request still hold the prompt


@pytest.mark.parametrize("sampling", [WILD, ALL_AT_ONCE], ids=["wild", "all at once"])
def test_rule_18_a_request_admitted_again_goes_on_where_it_was(shard: Shard, sampling: SamplingParams) -> None:
    mine = request(0, of_schema(PERSON), sampling=sampling)
    whole = run(shard, mine)[0]
    for num_before in range(1, len(whole), 5):
        again = run(shard, replace(mine, output_ids=ids(whole[:num_before])))[0]
        assert whole[:num_before] + again == whole, num_before


def test_min_new_tokens_holds_the_end_back_while_something_else_can_follow(shard: Shard) -> None:
    early = replace(WILD, min_new_tokens=8)
    tokens = run(
        shard,
        request(0, of_regex("a*"), sampling=early, num_new=40),
        request(1, of_regex("abc"), sampling=early),  # is complete before `min_new_tokens`, and ends
        request(2, of_regex("[ab]*"), sampling=replace(early, logit_bias=((ord("b"), 90.0),)), stop_ids=[ord("b")]),
    )
    assert len(tokens[0]) > 8
    assert text_of(tokens[1]) == "abc"
    assert ends_of(shard, 1) & FLAG_EOS
    assert tokens[2] == [ord("a")] * 8 + [ord("b")]
    assert ends_of(shard, 2) & FLAG_STOP_ID


def test_ignore_eos_goes_on_until_the_grammar_is_complete(shard: Shard) -> None:
    tokens = run(
        shard,
        request(0, of_regex("[ab]*"), num_new=50, ignore_eos=True),
        request(1, of_regex("[ab]{7}"), num_new=50, ignore_eos=True),
    )
    assert len(tokens[0]) == 50
    assert END_ID not in tokens[0]
    assert ends_of(shard, 0) & FLAG_LENGTH
    assert len(text_of(tokens[1])) == 7
    assert ends_of(shard, 1) & FLAG_EOS


def test_output_that_is_cut_says_so(shard: Shard) -> None:
    tokens = run(shard, request(0, of_schema(PERSON), num_new=5))[0]
    assert len(tokens) == 5
    assert ends_of(shard, 0) & FLAG_LENGTH
    assert not ends_of(shard, 0) & FLAG_EOS


class GatedFactory:
    """A factory that compiles when the test opens its gate. `seen` has the grammars that were asked for."""

    def __init__(self, factory: MatcherFactory) -> None:
        self._factory = factory
        self.gate = threading.Event()
        self.second_gate = threading.Event()

    def build(self, grammar: Grammar, output_ids: Sequence[int] = (), *, caller: int = 0) -> Matcher:
        if grammar.text.startswith("start: /slow|"):
            assert self.gate.wait(WAIT_S)
        if grammar.text.startswith("start: /slower|"):
            assert self.second_gate.wait(WAIT_S)
        return self._factory.build(grammar, output_ids, caller=caller)


def test_rule_19_a_slot_prefills_while_its_grammar_compiles_and_holds_up_nobody(
    runner: ModelRunner, matchers: MatcherFactory
) -> None:
    gated: Any = GatedFactory(matchers)
    with Shard(facts=FACTS, runner=runner, matchers=gated) as shard:
        slow = request(0, of_regex("slow|[ab]{3}"), prompt=range(30))
        fast = request(1, of_regex("[cd]{20}"), prompt=range(10))
        shard.send(admits=[slow, fast, request(2, None, num_new=30)])
        tokens = shard.run_to_end(1, 2)
        assert (0 in tokens, len(tokens[1]), len(tokens[2])) == (False, 21, 30)
        computed = [
            count
            for result in shard.results
            for at, count in zip(result.prefill_slots.tolist(), result.prefill_computed.tolist(), strict=True)
            if at == 0
        ]
        assert computed == [29]  # all but the last token, once
        assert shard.is_silent()  # the loop waits, because no slot can compute
        gated.gate.set()
        assert re.fullmatch("slow|[ab]{3}", text_of(shard.run_to_end(0)[0]))


def test_a_request_that_leaves_while_its_grammar_compiles_frees_its_slot(
    runner: ModelRunner, matchers: MatcherFactory
) -> None:
    gated: Any = GatedFactory(matchers)
    with Shard(facts=FACTS, runner=runner, matchers=gated) as shard:
        shard.send(admits=[request(0, of_regex("slow|x"))])
        while not shard.next_result().prefill_slots.tolist():
            pass
        next_one = replace(request(0, of_regex("slower|[ef]{4}")), request_id=77)
        shard.send(drops=[Drop(0, 1000)], admits=[next_one])
        while not shard.next_result().prefill_slots.tolist():
            pass
        gated.gate.set()
        assert shard.is_silent()  # the grammar of the request that left does not release the next occupant
        gated.second_gate.set()
        assert re.fullmatch("slower|[ef]{4}", text_of(shard.run_to_end(0)[0]))


class FaultyFactory:
    """A factory whose matchers break at the mask of a given token, in one of two ways."""

    def __init__(self, factory: MatcherFactory) -> None:
        self._factory = factory

    def build(self, grammar: Grammar, output_ids: Sequence[int] = (), *, caller: int = 0) -> Any:
        matcher: Any = self._factory.build(grammar, output_ids, caller=caller)
        return BreakingMatcher(matcher, grammar.text) if "breaks" in grammar.text else matcher


class BreakingMatcher:
    def __init__(self, matcher: Matcher, how: str) -> None:
        self._matcher = matcher
        self._how = how
        self._num_masks = 0

    def allowed(self) -> Any:
        self._num_masks += 1
        if self._num_masks == 3:
            if "empty" in self._how:
                return np.zeros(VOCAB_SIZE, dtype=np.bool_)
            raise GrammarFault("out of fuel") if "fuel" in self._how else ZeroDivisionError("oops")
        return self._matcher.allowed()

    def consume(self, tokens: Sequence[int]) -> None:
        self._matcher.consume(tokens)


@pytest.mark.parametrize(
    ("regex", "num_before", "words"),
    [
        ("a|(", 0, "does not compile"),
        ("breaks by fuel[ab]*", 2, "out of fuel"),
        ("breaks by itself[ab]*", 2, "ZeroDivisionError: oops"),
        ("breaks empty[ab]*", 2, "no token can follow"),
    ],
)
def test_rule_19_a_fault_of_a_matcher_ends_its_request_only(
    runner: ModelRunner, matchers: MatcherFactory, regex: str, num_before: int, words: str
) -> None:
    faulty: Any = FaultyFactory(matchers)
    others = [request(1, of_schema(PERSON)), request(2, None, num_new=40)]
    with Shard(facts=FACTS, runner=runner, matchers=matchers) as undisturbed:
        expected = run(undisturbed, *others)
    with Shard(facts=FACTS, runner=runner, matchers=faulty) as shard:
        shard.send(admits=[others[0], request(0, of_regex(regex)), others[1]])
        tokens = shard.run_to_end(0, 1, 2)
        assert {slot: tokens[slot] for slot in (1, 2)} == expected
        assert len(tokens.get(0, [])) == num_before
        [error] = [error for result in shard.results for error in result.errors]
        assert (error.slot, error.request_id, error.code) == (0, 1000, SlotErrorCode.INTERNAL)
        assert words in error.message
        # The next request in the slot is not disturbed.
        assert text_of(run(shard, request(0, of_regex("abc")))[0]) == "abc"


def test_a_tokenizer_of_another_size_than_the_logits(folder: Path) -> None:
    wider = MatcherFactory((folder / "tokenizer.json").read_text(), vocab_size=1001, eos_token_ids=(END_ID,))
    allowed_V = wider.build(of_regex("a?")).allowed()
    assert allowed_V.shape == (1001,)
    assert np.flatnonzero(allowed_V).tolist() == [ord("a"), END_ID]
