"""Rules 8 to 17 of docs/wire.md as the router obeys them: blocks, prefixes, grants, prefill."""

import pytest
from textmill_router.request import Standing
from textmill_router.scheduler.plan import Budget, Drop
from textmill_router.scheduler.scheduler import (
    DoesNotFit,
    PoolMismatch,
    Scheduler,
    SchedulerConfig,
    StreamBroken,
)

from tests.fakes.scheduler_hand import ENDED, Hand, make_piece, make_pool


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
    hand.step([(first.slot, 4, ENDED)])  # of four tokens three are computed
    assert hand.admit([1, 2, 3, 4, 5]).num_cached_tokens == 0
    second = hand.admit([9, 2, 3])
    hand.step([(second.slot, 4, 0)])
    hand.step([(second.slot, 5, 0)])  # now the fourth is computed
    assert hand.admit([9, 2, 3, 4, 5]).num_cached_tokens == 4


@pytest.mark.parametrize("num_computed", [3, 5])
def test_rule_09_a_chunk_neither_goes_back_nor_takes_the_last_token(num_computed: int):
    hand = Hand()
    admit = hand.admit([1, 2, 3, 4, 5])
    hand.step(prefills=[(admit.slot, 4)])
    with pytest.raises(StreamBroken):
        hand.step(prefills=[(admit.slot, num_computed)])


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
    second = hand.admit([1, 2, 3, 4, 5])  # one shared block is not worth a wait
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
    hand.step(prefills=[(first.slot, 8)])  # eight tokens are found now, and one more block is not worth a wait
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
    other = hand.admit(list(range(30, 48)), max_new=1)  # takes five blocks, so that one cached block is evicted
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
    admit = hand.admit([1, 2, 3, 4], max_new=6)  # nine places, because nothing is computed from the tenth token
    assert len(admit.block_ids) == 3
    for token in range(5):
        assert hand.step([(admit.slot, token, 0)]).plans == ()


def test_rule_14_admission_leaves_one_block_for_each_running_request():
    hand = Hand(num_blocks=6)
    hand.admit([1, 2, 3, 4], max_new=4)  # takes 2 of 6 blocks
    second = hand.admit([5, 6, 7, 8], max_new=4)  # takes 2 of 4 and leaves the one that must stay free
    third = hand.submit([9], max_new=2)  # would take 1 of 2, which both must stay free
    hand.tick()
    assert not hand.is_admitted(third)
    hand.step([(second.slot, 1, ENDED)])
    assert hand.is_admitted(third)


def test_rule_14_victim_is_the_last_in_priority_and_arrival_even_the_one_in_need():
    hand = Hand(num_blocks=7)
    first = hand.admit([1, 2, 3, 4], max_new=20, standing=Standing(priority=5))
    second = hand.admit([5, 6, 7, 8], max_new=20, standing=Standing(priority=0))
    drops = []
    for token in range(10, 22):
        rows = [(second.slot, token, 0)]
        if not drops:
            rows.insert(0, (first.slot, token, 0))
        decision = hand.step(rows)
        drops += [drop for plan in decision.plans for drop in plan.drops]
    assert drops == [Drop(first.slot, first.request_id)]
    assert hand.scheduler.stats().num_preemptions_total == 1


def test_rule_13_after_an_extend_none_comes_until_places_run_short_again():
    hand = Hand(num_blocks=100, ahead=8, regrant_below=4)
    admit = hand.admit([1, 2, 3, 4], max_new=40)  # 12 places
    num_tokens_at_extend = []
    for token in range(20):
        plans = hand.step([(admit.slot, token, 0)]).plans
        if any(plan.extends for plan in plans):
            num_tokens_at_extend.append(5 + token)
    assert num_tokens_at_extend == [9, 17]  # fewer than 4 places are left of 12, then of 20; next at 25


def test_rule_14_running_requests_are_extended_before_waiting_ones_are_admitted():
    hand = Hand(num_blocks=6, ahead=8, regrant_below=4)
    running = hand.admit([1, 2, 3, 4], max_new=20)  # 3 blocks
    for token in range(4):
        hand.step([(running.slot, token, 0)])
    hand.submit([9], max_new=1)  # needs one block and one to stay free; there are 3
    (plan,) = hand.step([(running.slot, 4, 0)]).plans
    assert [len(extend.block_ids) for extend in plan.extends] == [2]
    assert plan.admits == ()


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
    # Chunks are 5 tokens. Three chunks (15 < 16) let the fourth request in, and four (20) are enough.
    assert [hand.is_admitted(request_id) for request_id in ids] == [True] * 4 + [False] * 4
    hand.step(prefills=[(hand.admit_of(ids[0]).slot, 18)])  # 2 tokens are left, so the next chunks are 17 in all
    assert not hand.is_admitted(ids[4])
    hand.step([(hand.admit_of(ids[0]).slot, 1, 0)])  # the slot decodes, so the next chunks are 15 in all
    assert hand.is_admitted(ids[4])  # 20 in all
    assert not hand.is_admitted(ids[5])
    hand.step(prefills=[(hand.admit_of(ids[1]).slot, 19), (hand.admit_of(ids[2]).slot, 19)])  # 1 + 1 + 5 + 5
    assert hand.is_admitted(ids[5])  # 17 in all
    assert not hand.is_admitted(ids[6])


def test_rule_16_two_steps_of_budget_are_enough():
    hand = Hand(num_blocks=100, num_slots=8, budget=Budget(64, 8, 4))
    ids = [hand.submit([number] * 20) for number in range(6)]
    hand.tick()
    assert [hand.is_admitted(request_id) for request_id in ids] == [True] * 4 + [False] * 2  # the chunks are 16 tokens


def test_rule_16_a_prefill_that_leaves_makes_room_for_another():
    hand = Hand(num_blocks=100, num_slots=8, budget=Budget(64, 8, 4))
    ids = [hand.submit([number] * 20) for number in range(6)]
    hand.tick()
    hand.scheduler.on_cancel(hand.admit_of(ids[0]).request_id)
    hand.tick()
    assert [hand.is_admitted(request_id) for request_id in ids] == [True] * 5 + [False]


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


def test_rule_17_nobody_waits_for_a_prefix_that_he_cannot_use():
    hand = Hand()
    prompt = list(range(1, 14))
    hand.admit(prompt)
    assert hand.admit(prompt, wants_prompt_logprobs=True).num_cached_tokens == 0


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
