"""The rules of the stream (docs/wire.md) that the step loop obeys, each test with its number."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from textmill_shard.forward_batch import RowScan
from textmill_shard.plan import (
    FLAG_EOS,
    FLAG_FINISHED,
    FLAG_LENGTH,
    FLAG_STOP_ID,
    Budget,
    Plan,
    PlanRejection,
    SlotErrorCode,
)
from textmill_shard.sampler import SampledRows, Sampler
from textmill_shard.sampling_params import SamplingParams
from textmill_shard.session import EndReason, StreamEnd
from textmill_shard.slot_sampling import SlotSampling

from tests.unit.shard.step_harness import (
    EOS_ID,
    FACTS,
    VOCAB_SIZE,
    WAIT_S,
    Shard,
    admit,
    drop,
    extend,
    flags_of,
    greedy,
    next_token,
    tokens_by_slot,
)

PROMPT = [5, 3, 8, 1, 9]


def gated() -> Shard:
    """A shard whose steps the test lets through one by one."""
    return Shard(gate=threading.Semaphore(0))


def test_request_alone_gives_the_tokens_of_the_formula() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=6)])
        assert shard.run_to_end(0) == {0: greedy(PROMPT, 6)}


def test_batched_requests_give_the_tokens_that_they_give_alone() -> None:
    prompts = [[1, 2], PROMPT, [7] * 11, [4]]
    with Shard() as shard:
        shard.send(admits=[admit(slot, prompt, max_new=8) for slot, prompt in enumerate(prompts)])
        assert shard.run_to_end(0, 1, 2, 3) == {slot: greedy(prompt, 8) for slot, prompt in enumerate(prompts)}


def test_request_ids_use_all_64_bits() -> None:
    largest = 2**64 - 1
    with Shard() as shard:
        shard.runner.spoil = lambda tokens: len(tokens) == 6
        shard.send(admits=[admit(0, PROMPT, request_id=largest), admit(1, [1, 2], request_id=0, max_new=1)])
        shard.run_to_end(0, 1)
        assert [error.request_id for result in shard.results for error in result.errors] == [largest]


def test_rule_01_drops_come_before_admits_of_the_same_plan() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT)])
        shard.step()
        shard.hold()  # the step under way was composed before the plan: one more token of the first occupant
        shard.send(drops=[drop(0)], admits=[admit(0, [2, 4, 6], blocks=range(8, 12), request_id=7)])
        results = [shard.step() for _ in range(5)]
        tokens = [result.tokens.tolist() for result in results]
        assert [*tokens[0], *[token for row in tokens[1:] for token in row]] == [
            greedy(PROMPT, 2)[1],
            *greedy([2, 4, 6], 4),
        ]


def test_rule_01_an_extend_is_seen_by_the_step_that_follows_its_plan() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=8)])
        for _ in range(3):
            shard.step()
        shard.hold()  # the fourth step takes the last place that is granted
        shard.send(extends=[extend(0, [2])])
        results = [shard.step() for _ in range(5)]
        assert all(not len(result.starved_slots) for result in results)
        assert tokens_by_slot(shard.results) == {0: greedy(PROMPT, 8)}


def test_rule_02_a_result_names_the_last_plan_applied_before_its_composition() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT)])
        shard.hold()
        shard.send(drops=[drop(3)])
        assert [shard.step().plan_applied for _ in range(2)] == [1, 2]


def test_rule_02_a_plan_that_leaves_nothing_to_run_is_acknowledged_without_rows() -> None:
    with Shard() as shard:
        shard.send(drops=[drop(2)])
        result = shard.next_result()
        assert (result.step, result.plan_applied, len(result.slots), len(result.prefill_slots)) == (0, 1, 0, 0)
        assert shard.is_silent()
        assert shard.runner.batches == []


def test_rule_02_dropping_the_only_request_is_acknowledged() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT)])
        shard.hold()
        number = shard.send(drops=[drop(0)])
        assert shard.step().plan_applied == number - 1  # composed before the drop
        result = shard.next_result()
        assert (result.step, result.plan_applied) == (0, number)
        assert shard.executor.table.is_empty


def test_rule_03_no_slot_passes_its_granted_places() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=20)])
        while not len(shard.next_result().starved_slots):
            pass
        # 8 places: 5 prompt tokens, 3 outputs stored, a fourth sampled from the last of them.
        assert tokens_by_slot(shard.results) == {0: greedy(PROMPT, 4)}
        assert shard.is_silent()
        assert shard.runner.pool[2] == [-1] * 4


@pytest.mark.parametrize("is_drop", [True, False])
def test_rule_05_drop_and_extend_of_a_gone_occupant_do_nothing(is_drop: bool) -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=2)])
        shard.run_to_end(0)
        if is_drop:
            shard.send(drops=[drop(0), drop(1, request_id=9)])
        else:
            shard.send(extends=[extend(0, [20])])
        assert shard.next_result().step == 0
        shard.send(admits=[admit(0, [1, 2, 3], blocks=[20, 21], request_id=8)])
        shard.results.clear()
        assert shard.run_to_end(0) == {0: greedy([1, 2, 3], 4)}


def test_rule_05_drop_of_a_former_occupant_leaves_the_present_one() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=2)])
        shard.run_to_end(0)
        shard.send(admits=[admit(0, [1, 2, 3], blocks=[20, 21], request_id=8)], drops=[drop(0)])
        shard.send(drops=[drop(0)], extends=[extend(0, [22])])
        shard.results.clear()
        assert shard.run_to_end(0) == {0: greedy([1, 2, 3], 4)}


def test_rule_05_extend_for_a_former_occupant_gives_the_present_one_nothing() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=1)])
        shard.step()
        shard.send(admits=[admit(0, [1, 2, 3], blocks=[20, 21], request_id=8)])
        shard.hold()
        shard.send(extends=[extend(0, [22])])
        assert shard.step().plan_applied == 2
        assert shard.step().plan_applied == 3
        assert shard.executor.table.blocks_of(0).tolist() == [20, 21]


def test_rule_06_nothing_names_an_occupant_after_its_finished_row() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=2), admit(1, [6, 2], max_new=9)])
        shard.run_to_end(0, 1)
        assert flags_of(shard.results, 0) == [0, FLAG_FINISHED | FLAG_LENGTH]
        assert tokens_by_slot(shard.results)[0] == greedy(PROMPT, 2)
        at = next(index for index, result in enumerate(shard.results) if 0 in result.slots[result.flags > 0])
        assert all(0 not in result.slots for result in shard.results[at + 1 :])
        assert not shard.executor.table.is_occupied.any()


def test_rule_07_length_ends_a_request_without_a_further_step() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=3)])
        shard.run_to_end(0)
        assert shard.is_silent()
        assert len(shard.runner.batches) == 3
        assert flags_of(shard.results, 0)[-1] == FLAG_FINISHED | FLAG_LENGTH


def test_rule_07_eos_ends_a_request_unless_ignored() -> None:
    def say(tokens: Sequence[int]) -> int:
        return EOS_ID if len(tokens) == 7 else next_token(tokens)

    with Shard() as shard:
        shard.runner.say = say
        shard.send(admits=[admit(0, PROMPT, max_new=9), admit(1, PROMPT, max_new=9, ignore_eos=True)])
        tokens = shard.run_to_end(0, 1)
        assert tokens[0] == [*greedy(PROMPT, 2), EOS_ID]
        assert flags_of(shard.results, 0) == [0, 0, FLAG_FINISHED | FLAG_EOS]
        assert tokens[1][:3] == tokens[0]
        assert len(tokens[1]) == 9


def test_rule_07_stop_id_ends_a_request() -> None:
    stop_id = greedy(PROMPT, 3)[2]
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=9, stop_ids=[48, stop_id])])
        assert shard.run_to_end(0)[0] == greedy(PROMPT, 3)
        assert flags_of(shard.results, 0)[-1] == FLAG_FINISHED | FLAG_STOP_ID


def test_rule_07_eos_and_stop_ids_are_masked_before_min_new_tokens() -> None:
    stop_id = 48

    with Shard() as shard:
        shard.runner.say = lambda tokens: EOS_ID
        sampling = SamplingParams(min_new_tokens=3)
        shard.send(admits=[admit(0, PROMPT, max_new=9, sampling=sampling, stop_ids=[stop_id])])
        tokens = shard.run_to_end(0)[0]
        assert len(tokens) == 4
        assert tokens[3] == EOS_ID
        assert not {EOS_ID, stop_id} & set(tokens[:3])


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
    """The harness computes from what stands at the places: a token too many or too few is another text."""
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
        # One pass: 5 of the long one, the short one whole; what is left (1) goes to the long one.
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


def test_rule_18_a_readmitted_request_goes_on_as_if_undisturbed() -> None:
    sampling = SamplingParams(do_sample=True, seed=11, temperature=30.0, repetition_penalty=1.3, frequency_penalty=0.4)
    request = admit(0, PROMPT, max_new=12, sampling=sampling)
    with Shard() as shard:
        shard.send(admits=[request])
        undisturbed = shard.run_to_end(0)[0]
    assert undisturbed != greedy(PROMPT, 12)
    for cut in (1, 5, 11):
        with Shard() as shard:
            again = replace(request, slot=2, output_ids=np.array(undisturbed[:cut]), block_ids=np.arange(16, 24))
            shard.send(admits=[admit(1, [4, 4], max_new=8), again])
            assert shard.run_to_end(2)[2] == undisturbed[cut:]


@pytest.mark.parametrize("is_new_epoch", [False, True])
def test_rule_18_a_request_admitted_again_to_its_slot_is_built_from_the_new_admit(is_new_epoch: bool) -> None:
    sampling = SamplingParams(do_sample=True, seed=5, temperature=30.0)
    request = admit(0, PROMPT, max_new=9, sampling=sampling, ignore_eos=True)
    with Shard() as shard:
        shard.send(admits=[request])
        undisturbed = shard.run_to_end(0)[0]
    with gated() as shard:
        shard.send(admits=[request])
        for _ in range(5):
            shard.step()
        shard.hold()
        # As if only two of the tokens so far had reached the router.
        again = replace(request, output_ids=np.array(undisturbed[:2]))
        if is_new_epoch:
            shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
            shard.connect()
            shard.send(admits=[again])
        else:
            shard.send(drops=[drop(0)], admits=[again])
        shard.gate.release(100)
        while not shard.results or shard.results[-1].slots.tolist() != [0] or not shard.results[-1].flags[0]:
            shard.next_result()
        assert tokens_by_slot(shard.results)[0][-7:] == undisturbed[2:]


def test_rule_18_a_slot_keeps_nothing_of_its_former_occupant() -> None:
    sampling = SamplingParams(repetition_penalty=9.0, frequency_penalty=3.0)
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, sampling=sampling)])
        shard.run_to_end(0)
        shard.send(admits=[admit(0, [1, 2, 3], blocks=[20, 21], request_id=5)])
        shard.results.clear()
        assert shard.run_to_end(0) == {0: greedy([1, 2, 3], 4)}


def test_rule_19_logits_that_are_not_finite_end_only_their_slot() -> None:
    with Shard() as shard:
        shard.runner.spoil = lambda tokens: tokens[0] == 6 and len(tokens) == 4
        shard.send(admits=[admit(0, PROMPT, max_new=6), admit(1, [6, 2], max_new=6)])
        tokens = shard.run_to_end(0, 1)
        errors = [error for result in shard.results for error in result.errors]
        assert [(error.slot, error.request_id, error.code) for error in errors] == [(1, 101, SlotErrorCode.NOT_FINITE)]
        assert tokens == {0: greedy(PROMPT, 6), 1: greedy([6, 2], 2)}
        assert not shard.executor.table.is_occupied.any()


class _FailingSampler(Sampler):
    """Breaks whenever a row with this seed is among those to sample."""

    def sample(
        self, logits_NV: torch.Tensor, slots: Sequence[SlotSampling], scan: RowScan | None = None
    ) -> SampledRows:
        if any(slot.params.seed == 666 and slot.num_output_tokens == 1 for slot in slots):
            raise RuntimeError("a bad row")
        return super().sample(logits_NV, slots, scan)


def test_rule_19_an_exception_of_one_row_ends_only_its_slot() -> None:
    with Shard(sampler=_FailingSampler()) as shard:
        bad = SamplingParams(seed=666)
        asks = SamplingParams(wants_logprobs=True, top_n_tokens=2)
        shard.send(admits=[admit(1, [6, 2], max_new=6, sampling=bad), admit(2, PROMPT, max_new=6, sampling=asks)])
        tokens = shard.run_to_end(1, 2)
        errors = [error for result in shard.results for error in result.errors]
        assert [(error.slot, error.code) for error in errors] == [(1, SlotErrorCode.INTERNAL)]
        assert "a bad row" in errors[0].message
        assert tokens == {1: greedy([6, 2], 1), 2: greedy(PROMPT, 6)}
        for result in shard.results:
            assert result.logprobs is not None
            assert len(result.logprobs) == len(result.slots)
            assert [top.row for top in result.top_tokens] == [result.slots.tolist().index(2)]


def test_rule_19_prompt_logprobs_that_are_not_finite_are_an_error() -> None:
    with Shard() as shard:
        shard.runner.spoil = lambda tokens: len(tokens) == 2
        shard.send(admits=[admit(0, PROMPT, prompt_logprobs_from=1)])
        shard.run_to_end(0)
        assert [error.code for error in shard.results[0].errors] == [SlotErrorCode.NOT_FINITE]
        assert len(shard.results[0].slots) == 0


@pytest.mark.parametrize("is_rejected", [True, False])
def test_a_step_that_ran_is_told_before_the_stream_ends(is_rejected: bool) -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, [1, 2], max_new=9)])
        shard.step()
        shard.hold()
        if is_rejected:
            shard.send(number=9)
        else:
            shard.engine.stop()
        assert shard.gate is not None
        shard.gate.release()
        assert shard.next_result().step == 2
        assert isinstance(shard.next_item(), PlanRejection if is_rejected else StreamEnd)


def test_rule_20_a_rejected_plan_changes_nothing_and_ends_the_stream() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=20)])
        while not len(shard.next_result().starved_slots):
            pass
        shard.send(extends=[extend(0, [2])], admits=[admit(1, [1, 2], cached=3)])
        rejection = shard.rejection()
        assert (rejection.plan, rejection.slot, rejection.field) == (2, 1, "admits.num_cached_tokens")
        assert shard.runner.pool[2] == [-1] * 4  # the extend of that plan was not applied
        assert shard.executor.table.is_empty
        shard.connect()
        shard.send(admits=[admit(0, PROMPT)])
        assert shard.run_to_end(0) == {0: greedy(PROMPT, 4)}


def test_rule_21_a_second_stream_is_refused_while_one_is_live() -> None:
    with Shard() as shard:
        assert shard.engine.open_session() is None
        first = shard.session
        shard.engine.close_session(first, EndReason.ROUTER_LEFT, "left")
        second = shard.engine.open_session()
        assert second is not None
        assert second.epoch == first.epoch + 1


def test_rule_21_a_broken_stream_drops_all_slots_and_the_next_starts_empty() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=20)])
        shard.step()
        former = shard.session
        shard.engine.close_session(former, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        shard.send(admits=[admit(0, [1, 2], blocks=[0, 1])])
        shard.gate.release(10)
        assert shard.run_to_end(0) == {0: greedy([1, 2], 4)}
        assert [result.step for result in shard.results] == [1, 2, 3, 4]
        assert shard.results[-1].plan_applied == 1


def test_rule_21_results_of_an_ended_epoch_do_not_reach_the_next_stream() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=20)])
        shard.hold()
        shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        shard.gate.release()
        shard.send(drops=[drop(0)])
        assert shard.next_result().step == 0


def test_rule_21_a_late_plan_of_an_ended_epoch_is_thrown_away() -> None:
    with Shard() as shard:
        former = shard.session
        shard.engine.close_session(former, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        shard.engine.submit_plan(former, Plan(1, admits=(admit(0, PROMPT),)), b"")
        shard.engine.close_session(former, EndReason.ROUTER_LEFT, "left")
        shard.send(admits=[admit(0, [1, 2])])
        assert shard.run_to_end(0) == {0: greedy([1, 2], 4)}


def test_rule_21_silence_of_the_router_ends_the_epoch() -> None:
    now = [0.0]
    with Shard(lease_s=5.0, clock=lambda: now[0]) as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=20)])
        while not len(shard.next_result().starved_slots):
            pass
        now[0] = 4.9
        assert shard.is_silent()
        now[0] = 5.1
        item = shard.next_item()
        assert isinstance(item, StreamEnd)
        assert item.reason is EndReason.LEASE
        assert shard.executor.table.is_empty
        assert shard.engine.open_session() is not None


def test_rule_21_any_message_renews_the_lease() -> None:
    now = [0.0]
    with Shard(lease_s=5.0, clock=lambda: now[0]) as shard:
        for _ in range(4):
            now[0] += 4.0
            shard.session.hear()
            assert shard.session.silence_s() == 0.0
        shard.send(drops=[drop(0)])
        assert shard.next_result().plan_applied == 1


def test_a_fault_of_the_model_ends_the_loop_and_tells_the_stream() -> None:
    with Shard() as shard:
        shard.runner.raises = RuntimeError("device lost")
        shard.send(admits=[admit(0, PROMPT)])
        item = shard.next_item()
        assert isinstance(item, StreamEnd)
        assert item.reason is EndReason.FAILED
        assert "device lost" in item.message
    assert isinstance(shard.error, RuntimeError)


def test_results_number_their_steps_and_time_them() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=3)])
        shard.run_to_end(0)
        assert [result.step for result in shard.results] == [1, 2, 3]
        assert all(0 < result.device_ns <= result.step_ns < WAIT_S * 1e9 for result in shard.results)
        assert [result.gap_ns > 0 for result in shard.results] == [False, True, True]
        assert shard.status.snapshot.last_step == 3


def test_the_largest_facts_are_used_until_a_budget_comes() -> None:
    prompt = [1] * 40
    with Shard(facts=replace(FACTS, max_step_tokens=16)) as shard:
        shard.send(admits=[admit(0, prompt, max_new=1, blocks=range(11))])
        shard.run_to_end(0)
        assert [result.prefill_computed.tolist() for result in shard.results] == [[16], [32], []]
