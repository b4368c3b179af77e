"""Rule 34 as the router obeys it: a search by beams has all its blocks at once, and begins anew where it must leave."""

from array import array

import pytest
from textmill_router.request import Beams, BeamSequence, EarlyStopping
from textmill_router.scheduler.plan import Drop
from textmill_router.scheduler.scheduler import DoesNotFit, StreamBroken

from tests.fakes.scheduler_hand import ENDED, Hand

BEAMS = Beams(num_beams=2, num_sequences=1, length_penalty=1.0, early_stopping=EarlyStopping.NO)
FOUND = (BeamSequence(array("I", [7, 8]), -0.5),)


def test_a_search_gets_its_blocks_with_the_admission_and_none_later() -> None:
    hand = Hand()
    # Nine tokens fill a block of four and a part of the third; 9 + 8 - 1 places are four blocks of one sequence.
    admit = hand.admit(range(1, 10), max_new=8, beams=BEAMS)
    assert len(admit.block_ids) == 2 + 2 * 2
    for token in range(20, 27):
        decision = hand.step([(admit.slot, token, 0)])
        assert decision.plans == ()
    hand.step([(admit.slot, 30, ENDED)], found={admit.slot: FOUND})
    assert hand.outputs[-1].sequences == FOUND
    assert hand.scheduler.stats().num_held_blocks == 0


def test_only_the_blocks_of_the_prompt_are_found_again() -> None:
    hand = Hand()
    admit = hand.admit(range(1, 10), max_new=8, beams=BEAMS)
    for token in range(20, 27):
        hand.step([(admit.slot, token, 0)])
    hand.step([(admit.slot, 30, ENDED)], found={admit.slot: FOUND})
    again = hand.admit([*range(1, 10), *range(20, 27), 1], max_new=8)
    assert again.num_cached_tokens == 8


def test_a_search_shares_the_blocks_of_a_prefix() -> None:
    hand = Hand()
    first = hand.admit(range(1, 10), max_new=8)
    hand.step([(first.slot, 20, ENDED)])
    admit = hand.admit(range(1, 10), max_new=8, beams=BEAMS)
    assert admit.num_cached_tokens == 8
    assert admit.block_ids[:2] == first.block_ids[:2]
    assert len(admit.block_ids) == 6


def test_a_search_that_is_preempted_begins_anew() -> None:
    hand = Hand(num_blocks=8, num_slots=2)
    first = hand.admit([1, 2, 3, 4], max_new=20)
    admit = hand.admit([5, 6, 7, 8], max_new=6, beams=BEAMS)
    drops: list[Drop] = []
    token = 10
    while not drops:
        token += 1
        assert token < 40, "nobody was preempted"
        decision = hand.step([(first.slot, token, 0), (admit.slot, token, 0)])
        drops = [drop for plan in decision.plans for drop in plan.drops]
    assert drops == [Drop(admit.slot, admit.request_id)]
    hand.step([(first.slot, 60, ENDED)])
    again = hand.admit_of(admit.request_id)
    assert len(again.output_ids) == 0
    assert len(again.block_ids) == len(admit.block_ids)
    hand.step([(again.slot, 70, ENDED)], found={again.slot: FOUND})
    assert hand.outputs[-1].sequences == FOUND


def test_a_search_that_was_lost_with_the_shard_begins_anew() -> None:
    hand = Hand()
    admit = hand.admit([5, 6, 7, 8], max_new=6, beams=BEAMS)
    hand.step([(admit.slot, 20, 0)])
    hand.die()
    hand.begin()
    assert len(hand.admit_of(admit.request_id).output_ids) == 0


def test_a_search_that_the_pool_cannot_hold_is_refused() -> None:
    hand = Hand(num_blocks=8)
    hand.submit(range(1, 10), max_new=12)  # alone five blocks
    with pytest.raises(DoesNotFit):
        hand.submit(range(1, 10), max_new=12, beams=Beams(4, 1, 1.0, EarlyStopping.NO))


def test_a_search_that_ends_without_sequences_breaks_the_stream() -> None:
    hand = Hand()
    admit = hand.admit([5, 6, 7, 8], max_new=6, beams=BEAMS)
    with pytest.raises(StreamBroken):
        hand.step([(admit.slot, 20, ENDED)])
