"""Each rule of docs/wire.md that the router obeys, by its number."""

import dataclasses

import pytest
from textmill_router.plan import FLAG_EOS, FLAG_FINISHED, FLAG_LENGTH, Budget, Drop
from textmill_router.request import FailureCode, FinishReason, RequestId, SamplingParameters, Slot
from textmill_router.scheduler import (
    DoesNotFit,
    PlanRejectedTwice,
    PoolMismatch,
    QueueFull,
    Scheduler,
    SchedulerConfig,
    StreamBroken,
)

from tests.unit.router.scheduler_hand import BUDGET, ENDED, Hand, make_error, make_piece, make_pool


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
    # Nothing is computed yet, so the index is empty: an unrelated request finds nothing.
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
    # Each admit belongs to its own plan: a row is right as soon as that one is applied.
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
    hand.step()  # the drop is applied to nobody
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
    assert hand.scheduler.stats().num_leaving == 1
    hand.step([(first.slot, 7, 0)], applied=2)  # composed before the drop
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
    with pytest.raises(StreamBroken):  # the vain row must be swallowed
        hand.step([(first.slot, 8, 0)], applied=2)


def preempted(hand: Hand) -> tuple[int, int]:
    """Two requests; the second loses its blocks in the plan that extends the first. Returns their ids."""
    first = hand.admit([1, 2, 3, 4], max_new=20)
    second = hand.admit([5, 6, 7, 8], max_new=20)
    for token in range(10, 30):
        decision = hand.step([(first.slot, token, 0), (second.slot, token, 0)])
        drops = [drop for plan in decision.plans for drop in plan.drops]
        if drops:
            assert drops == [Drop(second.slot, second.request_id)]
            return int(first.request_id), int(second.request_id)
    raise AssertionError("nobody was preempted")


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
    assert again.max_new_tokens == 20


def test_rule_06_a_finish_after_a_preemption_is_a_finish():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    slot = hand.admit_of(second).slot
    hand.step([(hand.admit_of(first).slot, 40, 0), (slot, 40, ENDED)], applied=hand.last_plan - 1)
    assert hand.outputs[-1].finish is FinishReason.LENGTH
    hand.step([(hand.admit_of(first).slot, 41, 0)])
    stats = hand.scheduler.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_leaving) == (0, 1, 0)


def test_rule_06_a_preempted_request_can_be_cancelled_while_it_leaves():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    hand.scheduler.on_cancel(RequestId(second))
    hand.step([(hand.admit_of(first).slot, 40, 0)])
    stats = hand.scheduler.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_leaving) == (0, 1, 0)


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


def test_rule_08_freed_blocks_are_granted_in_the_same_plan():
    hand = Hand(num_blocks=4, num_slots=2)
    first = hand.admit([1, 2, 3, 4, 5, 6, 7, 8], max_new=8)
    second = hand.submit([9, 9, 9, 9, 9, 9, 9, 9], max_new=8)
    assert hand.tick() == ()
    hand.scheduler.on_cancel(first.request_id)
    (plan,) = hand.tick()
    assert plan.drops == (Drop(first.slot, first.request_id),)
    assert plan.admits[0].request_id == second
    assert set(plan.admits[0].block_ids) & set(first.block_ids)
    hand.scheduler.check()


def test_rule_09_the_last_sampled_token_is_not_computed():
    hand = Hand()
    first = hand.admit([1, 2, 3])
    hand.step([(first.slot, 4, ENDED)])  # four tokens, three computed
    assert hand.admit([1, 2, 3, 4, 5]).num_cached_tokens == 0
    second = hand.admit([9, 2, 3])
    hand.step([(second.slot, 4, 0)])
    hand.step([(second.slot, 5, 0)])  # now the fourth is
    assert hand.admit([9, 2, 3, 4, 5]).num_cached_tokens == 4


def test_rule_09_a_leaving_request_indexes_nothing_more():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5])
    hand.scheduler.on_cancel(first.request_id)
    hand.tick()
    hand.step([(first.slot, 6, 0)], applied=2)
    assert hand.admit([1, 2, 3, 4, 5]).num_cached_tokens == 0


def test_rule_09_of_two_equal_blocks_the_first_is_indexed():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5])
    second = hand.admit([1, 2, 3, 4, 5])  # one shared block is not worth waiting for
    assert second.num_cached_tokens == 0
    hand.step([(first.slot, 6, 0), (second.slot, 6, 0)])
    third = hand.admit([1, 2, 3, 4, 5])
    assert third.block_ids[0] == first.block_ids[0] != second.block_ids[0]


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(4, 0), (5, 4), (8, 4), (9, 8)])
def test_rule_10_cached_tokens_are_whole_blocks_and_leave_one_token(num_tokens: int, num_cached: int):
    hand = Hand()
    first = hand.admit(list(range(1, 10)))
    hand.step([(first.slot, 6, 0)])
    admit = hand.admit(list(range(1, num_tokens + 1)))
    assert admit.num_cached_tokens == num_cached
    assert admit.block_ids[: num_cached // 4] == first.block_ids[: num_cached // 4]


def test_rule_10_tenants_do_not_share():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5], cache_salt=b"a")
    hand.step([(first.slot, 6, 0)])
    assert hand.admit([1, 2, 3, 4, 5], cache_salt=b"b").num_cached_tokens == 0
    assert hand.admit([1, 2, 3, 4, 5], cache_salt=b"a").num_cached_tokens == 4


def test_rule_11_equal_prompts_wait_for_the_first_and_others_pass():
    hand = Hand(num_blocks=40)
    prompt = list(range(1, 13))
    first = hand.admit(prompt)
    held = hand.submit(prompt)
    other = hand.submit([50, 51])
    hand.tick()
    assert not hand.is_admitted(held)
    assert hand.is_admitted(other)
    hand.step(prefills=[(first.slot, 8)])  # eight tokens are found now, the third block is one only
    assert hand.admit_of(held).num_cached_tokens == 8


def test_rule_11_the_held_one_becomes_the_writer_when_the_writer_leaves():
    hand = Hand(num_blocks=40)
    prompt = list(range(1, 13))
    first = hand.admit(prompt)
    held = [hand.submit(prompt) for _ in range(2)]
    hand.tick()
    hand.scheduler.on_cancel(first.request_id)
    hand.tick()
    assert hand.admit_of(held[0]).num_cached_tokens == 0
    assert not hand.is_admitted(held[1])


def test_rule_12_new_epoch_empties_the_index():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5])
    hand.step([(first.slot, 6, ENDED)])
    hand.die()
    hand.begin()
    assert hand.admit([1, 2, 3, 4, 5]).num_cached_tokens == 0


def test_rule_12_the_child_is_evicted_before_its_parent():
    hand = Hand(num_blocks=6)
    first = hand.admit(list(range(1, 10)), max_new=1)
    hand.step([(first.slot, 6, ENDED)])
    assert hand.scheduler.stats().num_cached_blocks == 2
    other = hand.admit(list(range(30, 48)), max_new=1)  # takes five blocks, so one cached block goes
    hand.step([(other.slot, 6, ENDED)])
    assert hand.admit(list(range(1, 10)), max_new=1).num_cached_tokens == 4


def test_rule_13_extends_come_before_places_run_out_and_starvation_is_only_counted():
    hand = Hand(ahead=4, regrant_below=2)
    admit = hand.admit([1, 2, 3, 4], max_new=20)
    assert len(admit.block_ids) == 2
    extends = []
    for token in range(3):
        decision = hand.step([(admit.slot, token, 0)])
        extends += [extend for plan in decision.plans for extend in plan.extends]
    assert [(extend.slot, extend.request_id, len(extend.block_ids)) for extend in extends] == [
        (admit.slot, admit.request_id, 1)
    ]
    assert hand.step(starved=[admit.slot]).outputs == ()
    assert hand.scheduler.stats().num_starvations_total == 1


def test_rule_13_no_grant_goes_beyond_what_the_request_can_use():
    hand = Hand(ahead=64, regrant_below=32)
    admit = hand.admit([1, 2, 3, 4], max_new=6)  # nine places: nothing is computed from the tenth token
    assert len(admit.block_ids) == 3
    for token in range(5):
        assert hand.step([(admit.slot, token, 0)]).plans == ()


def test_rule_14_admission_leaves_one_block_for_each_running_request():
    hand = Hand(num_blocks=6)
    hand.admit([1, 2, 3, 4], max_new=4)  # 2 blocks of 6
    second = hand.admit([5, 6, 7, 8], max_new=4)  # 2 of 4, one must stay: admitted
    third = hand.submit([9], max_new=2)  # 1 of 2, two must stay: waits
    hand.tick()
    assert not hand.is_admitted(third)
    hand.step([(second.slot, 1, ENDED)])
    assert hand.is_admitted(third)


def test_rule_14_victim_is_the_last_in_priority_and_arrival_even_the_one_in_need():
    hand = Hand(num_blocks=7)
    first = hand.admit([1, 2, 3, 4], max_new=20, priority=5)
    second = hand.admit([5, 6, 7, 8], max_new=20, priority=0)
    drops = []
    for token in range(10, 22):
        rows = [(second.slot, token, 0)]
        if not drops:
            rows.insert(0, (first.slot, token, 0))
        decision = hand.step(rows)
        drops += [drop for plan in decision.plans for drop in plan.drops]
    assert drops == [Drop(first.slot, first.request_id)]
    assert hand.scheduler.stats().num_preemptions_total == 1


def test_rule_14_nobody_passes_a_request_that_lacks_room():
    hand = Hand(num_blocks=6)
    hand.admit([1] * 12, max_new=4)
    big = hand.submit([2] * 16, max_new=4)
    small = hand.submit([3], max_new=1)
    hand.tick()
    assert not hand.is_admitted(big)
    assert not hand.is_admitted(small)


def test_rule_14_a_request_that_does_not_fit_alone_is_refused():
    hand = Hand(num_blocks=4)
    assert hand.scheduler.can_ever_fit(16)
    assert not hand.scheduler.can_ever_fit(17)
    with pytest.raises(DoesNotFit):
        hand.submit([1] * 10, max_new=7)


def test_rule_14_a_request_that_fills_the_pool_alone_runs():
    hand = Hand(num_blocks=4, ahead=64, regrant_below=32)
    admit = hand.admit([1] * 10, max_new=6)
    assert len(admit.block_ids) == 4


def test_rule_16_prefills_are_admitted_up_to_two_steps_of_budget():
    hand = Hand(num_blocks=100, num_slots=8, budget=Budget(64, 8, 5))
    ids = [hand.submit([number] * 20) for number in range(8)]
    hand.tick()
    # Chunks of 5: 15 < 16 lets the fourth in, 20 is enough.
    assert [hand.is_admitted(request_id) for request_id in ids] == [True] * 4 + [False] * 4
    hand.step(prefills=[(hand.admit_of(ids[0]).slot, 18)])  # 2 left: 17 in all
    assert not hand.is_admitted(ids[4])
    hand.step([(hand.admit_of(ids[0]).slot, 1, 0)])  # 15: a token, no chunk
    assert hand.is_admitted(ids[4])  # 20
    assert not hand.is_admitted(ids[5])
    hand.step(prefills=[(hand.admit_of(ids[1]).slot, 19), (hand.admit_of(ids[2]).slot, 19)])  # 1 + 1 + 5 + 5
    assert hand.is_admitted(ids[5])  # 17
    assert not hand.is_admitted(ids[6])


def test_rule_16_slots_and_step_sizes_are_checked_at_start():
    config = SchedulerConfig(budget=Budget(8, 8, 8), max_waiting_requests=1, max_waiting_tokens=1)
    with pytest.raises(PoolMismatch, match="9 slots"):
        Scheduler(config).begin_epoch(make_pool(num_slots=9), 0.0)
    wide = SchedulerConfig(budget=Budget(65, 8, 8), max_waiting_requests=1, max_waiting_tokens=1)
    with pytest.raises(PoolMismatch, match="65 tokens"):
        Scheduler(wide).begin_epoch(make_pool(), 0.0)


def test_rule_17_prompt_logprobs_look_nothing_up_and_index_their_blocks():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5], wants_prompt_logprobs=True)
    assert first.prompt_logprobs_from == 1
    decision = hand.step([(first.slot, 6, 0)], pieces=[make_piece(first, 1, [-1.0, -2.0, -3.0, -4.0])])
    assert [output.tokens for output in decision.outputs] == [(), (6,)]
    second = hand.admit([1, 2, 3, 4, 5], wants_prompt_logprobs=True)
    assert second.num_cached_tokens == 0
    assert hand.admit([1, 2, 3, 4, 5]).num_cached_tokens == 4


def test_rule_17_a_readmitted_request_asks_for_what_was_not_delivered():
    hand = Hand()
    admit = hand.admit([1, 2, 3, 4, 5], wants_prompt_logprobs=True)
    hand.step(prefills=[(admit.slot, 2)], pieces=[make_piece(admit, 1, [-1.0, -2.0])])
    hand.die()
    hand.begin()
    again = hand.admit_of(admit.request_id)
    assert again.prompt_logprobs_from == 3
    hand.step([(again.slot, 6, 0)], pieces=[make_piece(again, 3, [-3.0, -4.0])])
    hand.die()
    hand.begin()
    assert hand.admit_of(admit.request_id).prompt_logprobs_from is None


def test_rule_17_a_gap_in_prompt_logprobs_breaks_the_stream():
    hand = Hand()
    admit = hand.admit([1, 2, 3, 4, 5], wants_prompt_logprobs=True)
    with pytest.raises(StreamBroken):
        hand.step(prefills=[(admit.slot, 2)], pieces=[make_piece(admit, 2, [-1.0])])


def test_rule_18_a_readmit_carries_all_that_the_slot_needs():
    hand = Hand()
    sampling = SamplingParameters(do_sample=True, temperature=0.5, seed=7)
    wishes = {"stop_ids": (9,), "ignore_eos": True, "min_new_tokens": 2, "wants_logprobs": True}
    first = hand.admit([1, 2, 3], sampling=sampling, **wishes)
    hand.step([(first.slot, 8, 0)], logprobs=[-0.5])
    hand.die()
    hand.begin()
    again = hand.admit_of(first.request_id)
    same = dataclasses.replace(again, output_ids=first.output_ids, slot=first.slot, block_ids=first.block_ids)
    assert same == first
    assert list(again.output_ids) == [8]
    assert list(first.output_ids) == []  # what was sent does not change behind the wire's back


def test_rule_19_an_error_ends_its_request_and_unindexes_what_it_wrote():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4])
    hand.step([(first.slot, 5, 0)])
    bad = hand.admit([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert bad.num_cached_tokens == 4
    hand.step([(first.slot, 6, 0)], prefills=[(bad.slot, 8)])
    decision = hand.step([(first.slot, 7, 0)], errors=[make_error(bad)])
    failure = decision.outputs[-1].failure
    assert failure is not None
    assert failure.code is FailureCode.NOT_FINITE
    # The first block was written by a healthy request and stays.
    assert hand.admit([1, 2, 3, 4, 5, 6, 7, 8, 9]).num_cached_tokens == 4
    assert hand.scheduler.stats().num_running == 2


def test_rule_20_requests_of_a_refused_plan_fail_and_the_rest_go_on():
    hand = Hand()
    first = hand.admit([1, 2, 3])
    hand.step([(first.slot, 4, 0)])
    second = hand.admit([5, 6, 7])
    outputs = hand.scheduler.on_plan_rejected(hand.last_plan, "slot 1 is taken", 5.0)
    assert [(output.request_id, output.failure and output.failure.code) for output in outputs] == [
        (second.request_id, FailureCode.PLAN_REJECTED)
    ]
    assert hand.tick() == ()
    assert hand.die() == ()
    decision = hand.begin()
    assert [admit.request_id for admit in decision.plans[0].admits] == [first.request_id]
    with pytest.raises(PlanRejectedTwice):
        hand.scheduler.on_plan_rejected(1, "slot 1 is taken", 6.0)


def test_rule_20_a_finished_request_between_two_refusals_forgives_the_first():
    hand = Hand()
    first = hand.admit([1, 2, 3])
    hand.step([(first.slot, 4, 0)])
    second = hand.admit([5, 6, 7])
    hand.scheduler.on_plan_rejected(hand.last_plan, "why not", 5.0)
    hand.die()
    hand.begin()
    hand.step([(hand.admit_of(first.request_id).slot, 5, ENDED)])
    third = hand.admit([5, 6, 7])
    outputs = hand.scheduler.on_plan_rejected(hand.last_plan, "why not", 6.0)
    assert [output.request_id for output in outputs] == [third.request_id]
    assert second.request_id != third.request_id


def test_rule_21_nothing_is_sent_while_no_epoch_is_live():
    hand = Hand()
    admit = hand.admit([1, 2, 3])
    hand.die()
    hand.submit([4, 5])
    assert hand.tick() == ()
    hand.scheduler.on_cancel(admit.request_id)
    assert hand.die() == ()
    decision = hand.begin()
    assert [admit.request_id for plan in decision.plans for admit in plan.admits] == [2]


def test_rule_22_running_requests_come_back_oldest_first_before_waiting_ones():
    hand = Hand(num_slots=2)
    first, second = hand.admit([1, 2, 3]), hand.admit([4, 5, 6])
    waiting = hand.submit([7, 8, 9], priority=-1)
    hand.step([(second.slot, 50, 0), (first.slot, 51, 0)])
    hand.die()
    decision = hand.begin(num_slots=3)
    admits = decision.plans[0].admits
    assert [admit.request_id for admit in admits] == [first.request_id, second.request_id, waiting]
    assert [list(admit.output_ids) for admit in admits] == [[51], [50], []]


def test_rule_22_a_request_that_does_not_fit_the_smaller_pool_fails():
    hand = Hand(num_blocks=16)
    admit = hand.admit([1, 2, 3], max_new=40)
    hand.die()
    decision = hand.begin(num_blocks=8)
    assert [output.request_id for output in decision.outputs] == [admit.request_id]
    assert decision.outputs[0].failure is not None
    assert decision.outputs[0].failure.code is FailureCode.INTERNAL


def test_rule_22_another_block_size_is_refused():
    hand = Hand()
    hand.die()
    pool = make_pool(epoch=2)
    with pytest.raises(PoolMismatch, match="blocks had 4 tokens"):
        hand.scheduler.begin_epoch(type(pool)(2, 4, 16, 8, 64), 0.0)


def test_rule_22_suspects_enter_alone_and_only_the_killer_fails():
    hand = Hand()
    healthy, killer, bystander = hand.admit([1, 2]), hand.admit([3, 4]), hand.admit([5, 6])
    hand.step([(healthy.slot, 50, 0)])
    assert hand.die() == ()  # first strike for two
    hand.begin()
    hand.step([(hand.admit_of(healthy.request_id).slot, 51, 0)])
    assert hand.die() == ()  # second
    newcomer = hand.submit([7, 8])
    hand.begin()
    # The healthy one is oldest; nobody enters while it has no token.
    assert [admit.request_id for plan in hand.plans for admit in plan.admits] == [healthy.request_id]
    hand.step([(hand.admit_of(healthy.request_id).slot, 52, 0)])
    assert hand.is_admitted(killer.request_id)
    assert not hand.is_admitted(bystander.request_id)
    assert not hand.is_admitted(newcomer)
    outputs = hand.die()
    assert [(output.request_id, output.failure and output.failure.code) for output in outputs] == [
        (killer.request_id, FailureCode.SUSPECT)
    ]
    hand.begin()
    hand.step([(hand.admit_of(healthy.request_id).slot, 53, 0)])
    assert hand.is_admitted(bystander.request_id)
    assert not hand.is_admitted(newcomer)
    hand.step([(hand.admit_of(bystander.request_id).slot, 60, 0)])  # has a token: cleared, and the door is open
    assert hand.is_admitted(newcomer)
    assert hand.die() == ()
    hand.begin()
    assert hand.tokens_of(healthy.request_id) == [50, 51, 52, 53]
    assert len(hand.plans[0].admits) == 3


def test_rule_22_a_refused_plan_makes_nobody_suspect():
    hand = Hand()
    first = hand.admit([1, 2, 3])
    for _ in range(3):
        second = hand.admit([5, 6, 7])
        hand.scheduler.on_plan_rejected(hand.last_plan, "why not", 5.0)
        hand.die()
        hand.begin()
        # Both are admitted together: no quarantine.
        third, fourth = hand.submit([9]), hand.submit([8])
        hand.tick()
        assert hand.is_admitted(third)
        assert hand.is_admitted(fourth)
        hand.step([(hand.admit_of(third).slot, 1, ENDED), (hand.admit_of(fourth).slot, 1, ENDED)])
        assert second.request_id != first.request_id


def test_a_broken_result_delivers_what_it_said_before():
    hand = Hand()
    admit = hand.admit([1, 2, 3])
    with pytest.raises(StreamBroken):
        hand.step([(admit.slot, 7, 0), (Slot(3), 8, 0)])
    late = hand.submit([4])
    assert hand.tick() == ()
    assert hand.step([(admit.slot, 8, 0)]).outputs == ()  # nothing is read any more
    assert not hand.is_admitted(late)
    assert [output.tokens for output in hand.die()] == [(7,)]
    hand.begin()
    assert list(hand.admit_of(admit.request_id).output_ids) == [7]


def test_logprobs_are_given_to_those_who_asked():
    hand = Hand()
    asks, does_not = hand.admit([1, 2, 3], wants_logprobs=True), hand.admit([4, 5, 6])
    outputs = hand.step([(asks.slot, 7, 0), (does_not.slot, 8, 0)], logprobs=[-0.5, float("nan")]).outputs
    assert [output.logprobs for output in outputs] == [(-0.5,), ()]
    with pytest.raises(StreamBroken, match="log-probabilities"):
        hand.step([(asks.slot, 7, 0)])


def test_queue_bounds_concern_new_requests_only():
    hand = Hand(num_slots=1, max_waiting_requests=1)
    first = hand.admit([1, 2, 3])
    hand.submit([4])
    with pytest.raises(QueueFull) as refused:
        hand.submit([5])
    assert (refused.value.num_requests, refused.value.max_requests) == (1, 1)
    hand.die()  # the running one comes back above the bound
    assert hand.scheduler.stats().num_waiting == 2
    hand.begin(num_slots=1)
    assert hand.is_admitted(first.request_id)


def test_cached_tokens_and_admission_time_are_those_of_the_first_admission():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5])
    hand.step([(first.slot, 6, 0)])
    second = hand.admit([1, 2, 3, 4, 5])
    output = hand.step([(second.slot, 6, 0)]).outputs[0]
    assert (output.num_cached_tokens, output.admitted_s) == (4, 100.0)
    hand.die()
    hand.begin()
    output = hand.step([(hand.admit_of(second.request_id).slot, 7, 0)]).outputs[0]
    assert (output.num_cached_tokens, output.admitted_s) == (4, 100.0)
