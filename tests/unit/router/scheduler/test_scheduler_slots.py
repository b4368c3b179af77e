"""Rules 1 to 7 of docs/wire.md as the router obeys them: plans in order, slots and their ends."""

import pytest
from textmill_router.request import FinishReason, RequestId
from textmill_router.scheduler.plan import FLAG_EOS, FLAG_FINISHED, FLAG_LENGTH, Budget, Drop
from textmill_router.scheduler.scheduler import StreamBroken
from textmill_router.scheduler.stats import SchedulerStats

from tests.fakes.scheduler_hand import BUDGET, ENDED, Hand, preempted


def num_leaving(stats: SchedulerStats) -> int:
    """Return the number of slots whose request no longer runs and whose drop is not acknowledged yet."""
    return stats.num_slots - stats.num_free_slots - stats.num_running


def test_rule_01_plans_are_numbered_from_one_in_each_epoch_and_the_first_holds_the_budget():
    hand = Hand()
    hand.admit([1, 2, 3])
    assert [plan.number for plan in hand.plans] == [1, 2]
    assert [plan.budget for plan in hand.plans] == [BUDGET, None]
    hand.die()
    decision = hand.begin()
    assert [plan.number for plan in decision.plans] == [1]
    assert decision.plans[0].budget == BUDGET
    assert len(decision.plans[0].admits) == 1


def test_rule_02_a_row_of_a_step_composed_before_the_admit_breaks_the_stream():
    hand = Hand()
    admit = hand.admit([1, 2, 3])
    with pytest.raises(StreamBroken):
        hand.step([(admit.slot, 9, 0)], applied=1)


@pytest.mark.parametrize("applied", [0, 3])
def test_rule_02_applied_plans_neither_go_back_nor_ahead_of_what_was_sent(applied: int):
    hand = Hand()
    hand.admit([1, 2, 3])
    hand.step(applied=1)
    with pytest.raises(StreamBroken):
        hand.step(applied=applied)


def test_rule_03_computed_tokens_move_by_results_only():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5, 6, 7, 8, 9])
    hand.tick()
    # No token is computed yet, so the index is empty and an unrelated request finds no block.
    hand.scheduler.on_cancel(first.request_id)
    assert hand.admit([1, 2, 3, 4, 5, 6, 7, 8, 9]).num_cached_tokens == 0


def test_rule_04_many_submits_are_one_plan_and_a_request_cancelled_before_is_in_none():
    hand = Hand()
    ids = [hand.submit([9, number, 3]) for number in range(4)]
    hand.scheduler.on_cancel(RequestId(ids[1]))
    plans = hand.tick()
    assert len(plans) == 1
    assert [admit.request_id for admit in plans[0].admits] == [ids[0], ids[2], ids[3]]
    assert hand.tick() == ()
    hand.step()
    assert hand.tokens_of(ids[1]) == []


def test_rule_04_plans_over_one_mebibyte_are_split_and_stay_in_order():
    hand = Hand(num_blocks=200_000, num_slots=8, budget=Budget(64, 64, 8), max_waiting_tokens=1_000_000)
    first = hand.admit([1, 2])
    ids = [hand.submit([number] + [5] * 100_000) for number in range(6)]
    hand.scheduler.on_cancel(first.request_id)
    plans = hand.tick()
    assert [len(plan.admits) for plan in plans] == [2, 2, 2]
    assert [len(plan.drops) for plan in plans] == [1, 0, 0]
    assert [admit.request_id for plan in plans for admit in plan.admits] == ids
    assert [plan.number for plan in plans] == [3, 4, 5]
    # Each admit belongs to its own plan, and a row is right as soon as that plan is applied.
    hand.step([(admit.slot, 1, 0) for plan in plans[:2] for admit in plan.admits], applied=4)
    with pytest.raises(StreamBroken):
        hand.step([(plans[2].admits[0].slot, 1, 0)], applied=4)


def test_rule_05_drop_names_slot_and_request_and_may_cross_the_finish():
    hand = Hand()
    admit = hand.admit([1, 2, 3])
    hand.scheduler.on_cancel(admit.request_id)
    assert hand.tick()[0].drops == (Drop(admit.slot, admit.request_id),)
    hand.step([(admit.slot, 7, ENDED)], applied=2)  # the finish crosses the drop
    assert hand.tokens_of(admit.request_id) == []
    assert hand.scheduler.stats().num_free_slots == 4
    hand.step()  # the drop finds no occupant
    assert hand.scheduler.stats().num_free_slots == 4


def test_rule_05_a_request_that_ends_before_its_drop_was_sent_is_not_dropped():
    hand = Hand()
    admit = hand.admit([1, 2, 3])
    hand.scheduler.on_cancel(admit.request_id)
    decision = hand.step([(admit.slot, 7, ENDED)])
    assert decision.plans == ()


def test_rule_06_slot_free_only_after_acknowledgement():
    hand = Hand(num_slots=1)
    first = hand.admit([1, 2, 3])
    second = hand.submit([4, 5, 6])
    hand.scheduler.on_cancel(first.request_id)
    hand.tick()
    assert not hand.is_admitted(second)
    assert num_leaving(hand.scheduler.stats()) == 1
    hand.step([(first.slot, 7, 0)], applied=2)  # the step was composed before the drop
    assert not hand.is_admitted(second)
    assert hand.tokens_of(first.request_id) == []
    hand.step(applied=3)
    assert hand.admit_of(second).slot == first.slot


def test_rule_06_slot_is_free_after_the_finished_row():
    hand = Hand(num_slots=1)
    first = hand.admit([1, 2, 3])
    second = hand.submit([4, 5, 6])
    decision = hand.step([(first.slot, 7, ENDED)])
    assert decision.plans[0].admits[0].request_id == second
    with pytest.raises(StreamBroken):  # the shard must not send the vain row
        hand.step([(first.slot, 8, 0)], applied=2)


def test_rule_06_tokens_after_a_preemption_count_and_only_the_acknowledgement_requeues():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    slot = hand.admit_of(second).slot
    seen = len(hand.tokens_of(second))
    hand.step([(hand.admit_of(first).slot, 40, 0), (slot, 40, 0)], applied=hand.last_plan - 1)
    assert hand.tokens_of(second)[seen:] == [40]
    assert hand.scheduler.stats().num_waiting == 0
    hand.step([(hand.admit_of(first).slot, 41, 0)])
    assert hand.scheduler.stats().num_waiting == 1
    hand.step([(hand.admit_of(first).slot, 42, ENDED)])
    again = hand.admit_of(second)
    assert list(again.output_ids) == hand.tokens_of(second)
    assert again.request.max_new_tokens == 20


def test_outputs_count_preemptions_and_the_chunks_that_gave_no_token():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    hand.step([(hand.admit_of(first).slot, 40, 0)])
    hand.step([(hand.admit_of(first).slot, 41, ENDED)])
    again = hand.admit_of(second)
    hand.step([], prefills=[(again.slot, 9)])
    hand.step([], prefills=[(again.slot, 10)])  # of 11 tokens, 8 of which were in the prefix cache
    hand.step([(again.slot, 42, ENDED)])
    efforts = {output.request_id: output.effort for output in hand.outputs}
    assert [efforts[name].num_preemptions for name in (first, second)] == [0, 1]
    assert [efforts[name].num_chunk_steps for name in (first, second)] == [0, 2]


def test_rule_06_a_finish_after_a_preemption_is_a_finish():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    slot = hand.admit_of(second).slot
    hand.step([(hand.admit_of(first).slot, 40, 0), (slot, 40, ENDED)], applied=hand.last_plan - 1)
    assert hand.outputs[-1].finish is FinishReason.LENGTH
    hand.step([(hand.admit_of(first).slot, 41, 0)])
    stats = hand.scheduler.stats()
    assert (stats.num_waiting, stats.num_running, num_leaving(stats)) == (0, 1, 0)


def test_rule_06_a_preempted_request_can_be_cancelled_while_it_leaves():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    hand.scheduler.on_cancel(RequestId(second))
    hand.step([(hand.admit_of(first).slot, 40, 0)])
    stats = hand.scheduler.stats()
    assert (stats.num_waiting, stats.num_running, num_leaving(stats)) == (0, 1, 0)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (FLAG_FINISHED | FLAG_LENGTH, FinishReason.LENGTH),
        (FLAG_FINISHED | FLAG_EOS, FinishReason.EOS),
        (FLAG_FINISHED | FLAG_EOS | FLAG_LENGTH, FinishReason.EOS),
        (FLAG_FINISHED | 8, FinishReason.STOP_ID),
        (FLAG_FINISHED | 8 | FLAG_LENGTH, FinishReason.STOP_ID),
    ],
)
def test_rule_07_the_last_output_names_why_it_ended(flags: int, reason: FinishReason):
    hand = Hand()
    admit = hand.admit([1, 2, 3])
    output = hand.step([(admit.slot, 7, flags)]).outputs[0]
    assert (output.tokens, output.finish) == ((7,), reason)


def test_rule_07_more_tokens_than_asked_break_the_stream():
    hand = Hand()
    admit = hand.admit([1, 2, 3], max_new=2)
    hand.step([(admit.slot, 7, 0)])
    hand.step([(admit.slot, 8, 0)])
    with pytest.raises(StreamBroken):
        hand.step([(admit.slot, 9, 0)])
