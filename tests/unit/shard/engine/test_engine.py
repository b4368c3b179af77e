"""Rules 1 to 7 of docs/wire.md as the step loop obeys them: plans in order, seats and their ends."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from textmill_shard.slots.plan import (
    FLAG_EOS,
    FLAG_FINISHED,
    FLAG_LENGTH,
    FLAG_STOP_ID,
)
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.step_harness import (
    EOS_ID,
    FACTS,
    WAIT_S,
    Shard,
    admit,
    drop,
    extend,
    flags_of,
    gated,
    greedy,
    next_token,
    tokens_by_slot,
)

PROMPT = [5, 3, 8, 1, 9]


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


def test_debug_log_follows_a_request_by_the_id_of_the_wire(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "textmill_shard.engine"), gated() as shard:
        shard.send(admits=[admit(0, PROMPT, request_id=41, max_new=2), admit(1, PROMPT, request_id=42, max_new=9)])
        for _ in range(2):
            shard.step()
        shard.send(drops=[drop(1, request_id=42)])
        shard.step()
    seen = [
        (record.message, vars(record)["request_id"], vars(record)["slot"])
        for record in caplog.records
        if record.message.startswith("request")
    ]
    assert seen == [
        ("request admitted", 41, 0),
        ("request admitted", 42, 1),
        ("request ends", 41, 0),
        ("request dropped", 42, 1),
    ]


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


def test_results_number_their_steps_and_time_them() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=3)])
        shard.run_to_end(0)
        assert [result.step for result in shard.results] == [1, 2, 3]
        assert all(0 < result.device_ns <= result.step_ns < WAIT_S * 1e9 for result in shard.results)
        assert shard.status.snapshot.last_step == 3


def test_the_largest_facts_are_used_until_a_budget_comes() -> None:
    prompt = [1] * 40
    with Shard(facts=replace(FACTS, max_step_tokens=16)) as shard:
        shard.send(admits=[admit(0, prompt, max_new=1, blocks=range(11))])
        shard.run_to_end(0)
        assert [result.prefill_computed.tolist() for result in shard.results] == [[16], [32], []]
