"""Searches by beams in the step loop: the sequences are those of the search alone, and neighbours notice nothing."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from textmill_shard.sampling.beam_search import BeamSearch
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.beam_blocks import num_search_blocks
from textmill_shard.slots.plan import Admit, Beams, EarlyStopping, SlotErrorCode
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.late_tokens import late_reader
from tests.fakes.step_harness import (
    BLOCK_SIZE,
    EOS_ID,
    FACTS,
    VOCAB_SIZE,
    Shard,
    admit,
    drop,
    greedy,
    ids,
    next_token,
    tokens_by_slot,
)

BEAM_FACTS = replace(FACTS, features=(*FACTS.features, "beams"))
PROMPT = [5, 3, 8, 1, 9]
BEAMS = Beams(3, 2, 1.0, EarlyStopping.NO)


def search(
    slot: int, prompt: Sequence[int], *, beams: Beams = BEAMS, max_new: int = 9, first_block: int = 0, **more: int
) -> Admit:
    """Return the admit of a search whose blocks lie one behind the other."""
    made = replace(admit(slot, prompt, max_new=max_new, blocks=(), **more), beams=beams)
    count = num_search_blocks(made, block_size=BLOCK_SIZE)
    return replace(made, block_ids=ids(range(first_block, first_block + count)))


def alone(prompt: Sequence[int], *, beams: Beams = BEAMS, max_new: int = 9) -> list[list[int]]:
    """Return what the search finds with the logits of the harness's formula, without any blocks."""
    params = SamplingParams(max_new_tokens=max_new, end_ids=(EOS_ID,))
    one = BeamSearch(beams, params, SlotText(np.array(prompt)), torch.device("cpu"))
    texts = [list(prompt)] * beams.num_beams
    while True:
        logits = torch.zeros(len(texts), VOCAB_SIZE)
        for row, text in enumerate(texts):
            logits[row, next_token(text)] = 5.0
        choice = one.advance(logits)
        if choice.is_over:
            return [sequence.tolist() for sequence in one.best()[0]]
        texts = [[*texts[parent], token] for parent, token in zip(choice.parents_W, choice.tokens_W, strict=True)]


def run(shard: Shard, *slots: int) -> dict[int, list[list[int]]]:
    """Run until the slots have finished, and return what the searches found, by slot."""
    shard.run_to_end(*slots)
    return {
        found.slot: [sequence.tolist() for sequence in found.sequences]
        for result in shard.results
        for found in result.found
    }


@pytest.mark.parametrize("num_prompt", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_a_search_finds_what_it_finds_alone(num_prompt: int, num_beams: int) -> None:
    prompt, beams = [5, 3, 8, 1, 9, 2, 4, 6][:num_prompt], replace(BEAMS, num_beams=num_beams)
    with Shard(facts=BEAM_FACTS) as shard:
        shard.send(admits=[search(0, prompt, beams=beams)])
        assert run(shard, 0)[0] == alone(prompt, beams=beams)
        # The rows of the search say that it goes on, once for each step.
        assert len(tokens_by_slot(shard.results)[0]) == 9


@pytest.mark.parametrize("has_overlap", [False, True])
def test_searches_and_other_requests_run_beside_each_other(has_overlap: bool) -> None:
    reader = late_reader() if has_overlap else None
    with Shard(facts=BEAM_FACTS, token_reader=reader) as shard:
        shard.send(
            admits=[
                search(0, PROMPT),
                admit(1, [6, 2], max_new=6, blocks=[20, 21]),
                search(2, [7, 7, 2], first_block=22, max_new=5, beams=replace(BEAMS, num_beams=2)),
            ]
        )
        found = run(shard, 0, 1, 2)
        assert tokens_by_slot(shard.results)[1] == greedy([6, 2], 6)
        assert found == {0: alone(PROMPT), 2: alone([7, 7, 2], max_new=5, beams=replace(BEAMS, num_beams=2))}


def test_one_token_needs_no_pass_behind_the_prompt() -> None:
    with Shard(facts=BEAM_FACTS) as shard:
        shard.send(admits=[search(0, PROMPT, max_new=1)])
        assert run(shard, 0)[0][0] == greedy(PROMPT, 1)
        assert len(shard.runner.batches) == 1


def test_a_dropped_search_is_forgotten_and_its_slot_used_again() -> None:
    gate = threading.Semaphore(0)
    with Shard(facts=BEAM_FACTS, gate=gate) as shard:
        shard.send(admits=[search(0, PROMPT)])
        shard.step()
        shard.hold()
        # The request itself comes back into its slot, as after a preemption.
        shard.send(drops=[drop(0)], admits=[search(0, PROMPT, first_block=10)])
        gate.release(100)
        assert run(shard, 0)[0] == alone(PROMPT)


def test_logits_that_are_not_finite_end_the_search_alone() -> None:
    with Shard(facts=BEAM_FACTS) as shard:
        shard.runner.spoil = lambda tokens: len(tokens) == len(PROMPT) + 3 and list(tokens[:5]) == PROMPT
        shard.send(admits=[search(0, PROMPT), admit(1, [6, 2], max_new=6, blocks=[20, 21])])
        shard.run_to_end(0, 1)
        [error] = [error for result in shard.results for error in result.errors]
        assert (error.slot, error.code) == (0, SlotErrorCode.NOT_FINITE)
        assert tokens_by_slot(shard.results)[1] == greedy([6, 2], 6)


def test_searches_without_room_together_run_one_by_one() -> None:
    with Shard(facts=BEAM_FACTS) as shard:
        two = replace(BEAMS, num_beams=2)
        shard.runner.refuse = lambda batch: MemoryError() if len(batch.context_lens_R) > 2 else None
        shard.send(admits=[search(0, PROMPT, beams=two), search(1, [7, 7, 2], beams=two, first_block=16)])
        assert run(shard, 0, 1) == {0: alone(PROMPT, beams=two), 1: alone([7, 7, 2], beams=two)}
        shard.send(admits=[search(0, PROMPT)])
        shard.results.clear()
        shard.run_to_end(0)
        assert any("memory" in error.message for result in shard.results for error in result.errors)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"beams": replace(BEAMS, num_beams=1)}, "admits.beams.num_beams"),
        ({"beams": replace(BEAMS, num_beams=9)}, "admits.beams.num_beams"),
        ({"beams": replace(BEAMS, num_sequences=4)}, "admits.beams.num_sequences"),
        ({"beams": replace(BEAMS, length_penalty=float("nan"))}, "admits.beams.length_penalty"),
        ({"block_ids": ids([0, 1])}, "admits.block_ids"),
        ({"sampling": SamplingParams(do_sample=True)}, "admits.beams"),
        ({"output_ids": ids([4])}, "admits.beams"),
    ],
)
def test_rule_34_a_search_that_breaks_the_rule_is_refused(changes: dict[str, object], field: str) -> None:
    with Shard(facts=BEAM_FACTS) as shard:
        shard.send(admits=[replace(search(0, PROMPT), **changes)])  # type: ignore[arg-type]
        assert shard.rejection().field == field


def test_rule_34_a_shard_that_searches_no_beams_says_so() -> None:
    with Shard() as shard:
        shard.send(admits=[search(0, PROMPT)])
        assert shard.rejection().field == "admits.beams"
