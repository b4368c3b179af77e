"""Requests with adapters: what they keep, whom they share with, and their end when the weights are lost."""

import pytest
from textmill_router.request import FailureCode, RequestId

from tests.fakes.scheduler_hand import ENDED, Hand, preempted

PROMPT = [1, 2, 3, 4, 5]
ONE, TWO = b"1" * 16, b"2" * 16


def test_rule_23_a_request_keeps_its_digest_over_a_new_epoch():
    hand = Hand()
    admit = hand.admit(PROMPT, adapter_digest=ONE, adapter_name="a")
    hand.step([(admit.slot, 50, 0)])
    hand.die()
    hand.begin()
    assert hand.admit_of(admit.request_id).request.adapter_digest == ONE


def test_rule_23_a_preempted_request_comes_back_with_its_digest_and_its_blocks():
    hand = Hand(num_blocks=7)
    first, second = preempted(hand, adapter_digest=ONE, adapter_name="a")
    hand.step([(hand.admit_of(first).slot, 40, ENDED)])
    again = hand.admit_of(second)
    assert again.request.adapter_digest == ONE
    assert again.num_cached_tokens > 0


def test_rule_12_a_sequence_shares_the_prompt_of_its_own_adapter_only():
    hand = Hand()
    leader = hand.admit(PROMPT, adapter_digest=ONE)
    with pytest.raises(AssertionError):
        hand.submit(PROMPT, adapter_digest=TWO, shares_prompt_of=leader.request_id)


def test_rule_23_requests_of_lost_weights_fail_wherever_they_are_and_no_other_does():
    hand = Hand(num_slots=2)
    lost, kept = hand.admit(PROMPT, adapter_digest=ONE), hand.admit(PROMPT, adapter_digest=TWO)
    waiting, base = hand.submit(PROMPT, adapter_digest=ONE), hand.submit([9, 9])
    outputs = hand.scheduler.fail_adapter(ONE, "the folder has changed")
    assert [(output.request_id, output.failure.code) for output in outputs if output.failure is not None] == [
        (lost.request_id, FailureCode.ADAPTER_LOST),
        (waiting, FailureCode.ADAPTER_LOST),
    ]
    assert not hand.scheduler.has(RequestId(waiting))
    assert hand.scheduler.has(kept.request_id)
    hand.tick()
    hand.step([(kept.slot, 50, 0)])  # acknowledges the drop, so that the slot goes to the request that waits
    assert hand.is_admitted(base)
    hand.scheduler.check()


def test_running_and_waiting_requests_are_counted_by_the_name_that_they_gave():
    hand = Hand(num_slots=2)
    hand.admit(PROMPT, adapter_digest=ONE, adapter_name="a")
    hand.admit([7, 8], adapter_digest=ONE, adapter_name="b")
    hand.submit([9], adapter_digest=ONE, adapter_name="a")
    hand.submit([9, 9])
    loads = hand.scheduler.num_by_adapter()
    assert {name: (load.num_running, load.num_waiting) for name, load in loads.items()} == {"a": (1, 1), "b": (1, 0)}
