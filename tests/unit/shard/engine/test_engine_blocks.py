"""Rules 8 to 17 of docs/wire.md as the step loop obeys them: places, prefixes, starvation, chunks."""

from collections.abc import Sequence

import numpy as np
import pytest
from textmill_shard.slots.plan import (
    Budget,
)

from tests.fakes.step_harness import (
    VOCAB_SIZE,
    Shard,
    admit,
    drop,
    extend,
    gated,
    greedy,
    next_token,
    tokens_by_slot,
)

PROMPT = [5, 3, 8, 1, 9]


def test_rule_08_a_freed_block_may_be_granted_again_in_the_same_plan() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[3, 4, 5], max_new=7)])
        shard.hold()
        shard.send(drops=[drop(0)], admits=[admit(1, [9, 9, 9, 2], blocks=[5, 4, 3])])
        for _ in range(5):
            shard.step()
        assert tokens_by_slot(shard.results)[1] == greedy([9, 9, 9, 2], 4)


def test_rule_09_the_last_sampled_token_has_no_place_yet() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, [1, 2, 3], blocks=[0, 1])])
        token = shard.step().tokens.tolist()[0]
        assert shard.runner.pool[0] == [1, 2, 3, -1]
        shard.step()
        assert shard.runner.pool[0] == [1, 2, 3, token]


def test_rule_10_a_cached_prefix_is_read_and_never_written() -> None:
    shared = [5, 3, 8, 1]
    with Shard() as shard:
        shard.send(admits=[admit(0, [*shared, 9], blocks=[0, 1, 2])])
        shard.run_to_end(0)
        shard.runner.batches.clear()
        shard.send(admits=[admit(1, [*shared, 7, 7], blocks=[0, 10, 11], cached=4)])
        shard.results.clear()
        assert shard.run_to_end(1) == {1: greedy([*shared, 7, 7], 4)}
        places = [place for batch in shard.runner.batches for place in batch.kv_places_T.tolist()]
        assert min(places) >= 4 * 10
        assert shard.runner.batches[0].input_ids_T.tolist() == [7, 7]


@pytest.mark.parametrize("num_copied", [1, 2, 3])
def test_rule_10_copied_places_are_those_of_the_prompt(num_copied: int) -> None:
    """The harness computes from the contents of the places, so that a token too many or too few gives another text."""
    prompt = [5, 3, 8, 1, *range(2, 3 + num_copied)]  # a full block of four, so many places, and one token to compute
    with gated() as shard:
        shard.send(admits=[admit(0, prompt, max_new=8, blocks=range(4))])
        first = shard.step()
        shard.send(admits=[admit(1, prompt, max_new=4, blocks=[0, 9, 10], cached=4 + num_copied, copied=1)])
        results = [first, *(shard.step() for _ in range(6))]
        tokens = tokens_by_slot(results)
        assert tokens[1] == tokens[0][: len(tokens[1])]
        assert tokens[1] == greedy(prompt, 4)
        assert all(batch.input_ids_T.numel() <= 2 for batch in shard.runner.batches[1:])


def test_rule_13_a_starved_slot_is_reported_once_and_goes_on_after_its_extend() -> None:
    with Shard() as shard:
        shard.send(
            admits=[admit(0, PROMPT, blocks=[0, 1], max_new=9), admit(1, [6, 2], max_new=20, blocks=range(8, 14))]
        )
        shard.run_to_end(1)
        assert [0 in result.starved_slots for result in shard.results].count(True) == 1
        first = next(result for result in shard.results if 0 in result.starved_slots)
        assert 0 not in first.slots
        assert 1 in first.slots  # the others go on
        shard.send(extends=[extend(0, [2, 3])])
        assert shard.run_to_end(0)[0] == greedy(PROMPT, 9)


def test_rule_13_a_prompt_without_places_starves_and_all_starved_waits() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0])])
        results = [shard.next_result(), shard.next_result()]
        assert results[0].prefill_computed.tolist() == [4]
        assert (results[1].step, results[1].starved_slots.tolist()) == (0, [0])
        assert shard.is_silent()
        shard.send(extends=[extend(0, [1])])
        shard.send(extends=[extend(0, [2])])
        assert shard.run_to_end(0) == {0: greedy(PROMPT, 4)}


def test_rule_16_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    budget = Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=5)
    long, short = list(range(1, 21)), [3, 1]
    with gated() as shard:
        shard.send(budget=budget, admits=[admit(0, long), admit(1, short)])
        first = shard.step()
        # The first pass gives 5 tokens to the long prompt and 2 to the short one; the long one gets the last token too.
        assert (first.prefill_slots.tolist(), first.prefill_computed.tolist()) == ([0], [6])
        assert (first.slots.tolist(), first.tokens.tolist()) == ([1], greedy(short, 1))
        second = shard.step()
        assert second.prefill_computed.tolist() == [13]  # 8 less one decode: 5, then 2 more
        assert second.slots.tolist() == [1]
        third = shard.step()
        assert third.slots.tolist() == [1, 0]  # the last chunk samples in the same step
        for _ in range(3):
            shard.step()
        assert tokens_by_slot(shard.results) == {0: greedy(long, 4), 1: greedy(short, 4)}


def test_rule_16_prefills_go_in_the_order_of_admission() -> None:
    budget = Budget(max_step_tokens=8, max_prefill_tokens=6, max_chunk_tokens=6)
    with gated() as shard:
        shard.send(budget=budget, admits=[admit(2, [1] * 9), admit(0, [2] * 9)])
        assert shard.step().prefill_slots.tolist() == [2]
        result = shard.step()
        assert (result.slots.tolist(), result.prefill_slots.tolist()) == ([2], [0])
        assert result.prefill_computed.tolist() == [3]


def expected_prompt_logprobs(prompt: Sequence[int], start: int) -> list[float]:
    """Logits are 5 at the next token of the formula and 0 elsewhere."""
    norm = float(np.log(np.exp(5.0) + VOCAB_SIZE - 1))
    return [(5.0 if next_token(prompt[:at]) == prompt[at] else 0.0) - norm for at in range(start, len(prompt))]


@pytest.mark.parametrize("start", [1, 4])
def test_rule_17_prompt_logprobs_come_chunk_by_chunk_from_the_position_asked(start: int) -> None:
    prompt = [*PROMPT, next_token(PROMPT), 2, 2, 2]
    with Shard() as shard:
        shard.send(
            budget=Budget(max_step_tokens=64, max_prefill_tokens=3, max_chunk_tokens=3),
            admits=[admit(0, prompt, prompt_logprobs_from=start, prompt_top_n=1)],
        )
        shard.run_to_end(0)
        pieces = [piece for result in shard.results for piece in result.prompt_logprobs]
        assert len(pieces) == (3 if start == 1 else 2)
        assert [piece.start for piece in pieces] == ([1, 4, 7] if start == 1 else [4, 7])
        found = [value for piece in pieces for value in piece.logprobs.tolist()]
        assert found == pytest.approx(expected_prompt_logprobs(prompt, start))
        best = [token for piece in pieces for token in piece.top_ids.tolist()]
        assert best == [next_token(prompt[:at]) for at in range(start, len(prompt))]
        assert all(count == 1 for piece in pieces for count in piece.top_counts.tolist())
