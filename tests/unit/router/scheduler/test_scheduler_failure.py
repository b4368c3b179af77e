"""Rules 18 to 22 of docs/wire.md as the router obeys them: errors, epochs, bounds."""

import dataclasses

import pytest
from textmill_router.request import (
    FailureCode,
    GenerationParameters,
    Grammar,
    RequestId,
    SamplingParameters,
    Slot,
    Standing,
)
from textmill_router.scheduler.scheduler import (
    PlanRejectedTwice,
    PoolMismatch,
    QueueFull,
    StreamBroken,
)
from textmill_router.scheduler.waiting_queue import QueueBound

from tests.fakes.scheduler_hand import ENDED, Hand, make_error, make_pool, preempted


def test_rule_18_a_readmit_carries_all_that_the_slot_needs():
    hand = Hand()
    sampling = SamplingParameters(do_sample=True, temperature=0.5, seed=7)
    parameters = GenerationParameters(sampling=sampling, ignore_eos=True, min_new_tokens=2)
    first = hand.admit([1, 2, 3], parameters=parameters, stop_ids=(9,), wants_logprobs=True)
    hand.step([(first.slot, 8, 0)], logprobs=[-0.5])
    hand.die()
    hand.begin()
    again = hand.admit_of(first.request_id)
    same = dataclasses.replace(again, output_ids=first.output_ids, slot=first.slot, block_ids=first.block_ids)
    assert same == first
    assert list(again.output_ids) == [8]
    assert list(first.output_ids) == []  # a plan that was sent does not change later


def test_rule_18_an_admit_says_all_that_was_asked():
    parameters = GenerationParameters(
        sampling=SamplingParameters(do_sample=True, temperature=0.5, seed=7),
        ignore_eos=True,
        min_new_tokens=2,
        grammar=Grammar("start: /a+/"),
        watermark=True,
    )
    wishes = {"stop_ids": (9,), "wants_logprobs": True, "top_n_tokens": 3, "prompt_top_n_tokens": 4}
    request = Hand().admit([1, 2, 3], max_new=5, parameters=parameters, **wishes).request
    assert {name: getattr(request, name) for name in wishes} == wishes
    assert request.parameters == parameters
    assert (list(request.prompt_ids), request.max_new_tokens) == ([1, 2, 3], 5)


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
    # The first block stays, because a healthy request has written it.
    assert hand.admit([1, 2, 3, 4, 5, 6, 7, 8, 9]).num_cached_tokens == 4
    assert hand.scheduler.stats().num_running == 2


def test_rule_19_blocks_that_a_readmitted_request_wrote_before_are_its_own():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand)
    hand.step([(hand.admit_of(first).slot, 40, ENDED)])
    again = hand.admit_of(second)
    assert again.num_cached_tokens > 0
    hand.step(errors=[make_error(again)])
    assert hand.admit([5, 6, 7, 8, 9]).num_cached_tokens == 0


def test_rule_19_an_error_of_another_occupant_breaks_the_stream():
    hand = Hand()
    error = make_error(hand.admit([1, 2, 3]))
    with pytest.raises(StreamBroken, match="error for request 99"):
        hand.step(errors=[dataclasses.replace(error, request_id=RequestId(99))])


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
    waiting = hand.submit([7, 8, 9], standing=Standing(priority=-1))
    hand.step([(second.slot, 50, 0), (first.slot, 51, 0)])
    hand.die()
    decision = hand.begin(num_slots=3)
    admits = decision.plans[0].admits
    assert [admit.request_id for admit in admits] == [first.request_id, second.request_id, waiting]
    assert [list(admit.output_ids) for admit in admits] == [[51], [50], []]


def test_rule_22_a_request_that_does_not_fit_the_smaller_pool_fails():
    hand = Hand(num_blocks=16)
    admit = hand.admit([1, 2, 3], max_new=30)
    hand.die()
    decision = hand.begin(num_blocks=8)  # 32 places, which are one too few
    assert [output.request_id for output in decision.outputs] == [admit.request_id]
    assert decision.outputs[0].failure is not None
    assert decision.outputs[0].failure.code is FailureCode.INTERNAL


def test_rule_22_another_block_size_is_refused():
    hand = Hand()
    hand.die()
    pool = make_pool()
    with pytest.raises(PoolMismatch, match="blocks had 4 tokens"):
        hand.scheduler.begin_epoch(type(pool)(4, 16, 8, 64), 0.0)


def test_rule_22_suspects_enter_alone_and_only_the_killer_fails():
    hand = Hand()
    healthy, killer, bystander = hand.admit([1, 2]), hand.admit([3, 4]), hand.admit([5, 6])
    hand.step([(healthy.slot, 50, 0)])
    assert hand.die() == ()  # the first strike for two requests
    hand.begin()
    hand.step([(hand.admit_of(healthy.request_id).slot, 51, 0)])
    assert hand.die() == ()  # the second strike
    newcomer = hand.submit([7, 8])
    hand.begin()
    # The healthy request is the oldest, and no suspect enters while that one has no token.
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
    hand.step([(hand.admit_of(bystander.request_id).slot, 60, 0)])  # a token takes the strikes away
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
        # Both are admitted together, so neither is a suspect.
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
    assert hand.step([(admit.slot, 8, 0)]).outputs == ()  # no further result is read
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
    assert (refused.value.bound, refused.value.found, refused.value.limit) == (QueueBound.REQUESTS, 1, 1)
    hand.die()  # the running request comes back, above the bound of the queue
    assert hand.scheduler.stats().num_waiting == 2
    hand.begin(num_slots=1)
    assert hand.is_admitted(first.request_id)


def test_cached_tokens_and_admission_time_are_those_of_the_first_admission():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5])
    hand.step([(first.slot, 6, 0)])
    second = hand.admit([1, 2, 3, 4, 5])
    output = hand.step([(second.slot, 6, 0)]).outputs[0]
    assert (output.effort.num_cached_tokens, output.effort.admitted_s) == (4, 100.0)
    hand.die()
    hand.begin()
    output = hand.step([(hand.admit_of(second.request_id).slot, 7, 0)]).outputs[0]
    assert (output.effort.num_cached_tokens, output.effort.admitted_s) == (4, 100.0)


def test_rule_22_a_request_alone_in_prefill_at_two_deaths_fails_and_the_others_go_on():
    hand = Hand()
    healthy, killer = hand.admit([1, 2]), hand.admit([3, 4])
    hand.step([(healthy.slot, 50, 0)])
    assert hand.die() == ()
    hand.begin()
    hand.step([(hand.admit_of(healthy.request_id).slot, 51, 0)])
    assert [(output.request_id, output.failure and output.failure.code) for output in hand.die()] == [
        (killer.request_id, FailureCode.SUSPECT)
    ]
    hand.begin()
    assert hand.admit_of(healthy.request_id).output_ids.tolist() == [50, 51]


def test_readmissions_and_the_tokens_that_are_computed_again_are_counted():
    hand = Hand()
    first = hand.admit([1, 2, 3, 4, 5])
    hand.step(prefills=[(first.slot, 3)])
    assert hand.scheduler.stats().num_readmissions_total == 0
    hand.die()
    hand.begin()
    stats = hand.scheduler.stats()
    assert (stats.num_readmissions_total, stats.num_recomputed_tokens_total) == (1, 3)
    again = hand.admit_of(first.request_id)
    hand.step([(again.slot, 50, 0)], prefills=[(again.slot, 5)])
    hand.die()
    hand.begin()
    stats = hand.scheduler.stats()
    assert (stats.num_readmissions_total, stats.num_recomputed_tokens_total) == (2, 3 + 5)
