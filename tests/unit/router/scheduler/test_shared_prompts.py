"""Sequences of one prompt: the first computes the prompt, the others wait and compute one token (rules 10, 11)."""

import pytest
from textmill_router.request import RequestId
from textmill_router.scheduler.plan import Admit

from tests.fakes.scheduler_hand import ENDED, Hand, make_error, make_piece

PROMPT = [1, 2, 3, 4, 5, 6, 7]  # one full block of four, two tokens more, and the last one


def follow(hand: Hand, leader: Admit, prompt: list[int] = PROMPT, **wishes: object) -> int:
    return hand.submit(prompt, shares_prompt_of=RequestId(leader.request_id), **wishes)


def num_computed(hand: Hand) -> int:
    return hand.scheduler.stats().num_prompt_tokens_computed_total


def test_others_wait_for_the_first_token_and_then_compute_one_token_each() -> None:
    hand = Hand(num_blocks=40)
    leader = hand.admit(PROMPT)
    followers = [follow(hand, leader) for _ in range(2)]
    hand.step(prefills=[(leader.slot, 6)])  # the full block of the leader is indexed, but its prompt is not complete
    assert not any(hand.is_admitted(follower) for follower in followers)
    hand.step([(leader.slot, 50, 0)])
    for follower in followers:
        admit = hand.admit_of(follower)
        assert (admit.num_cached_tokens, admit.copied_block_id) == (6, leader.block_ids[1])
        assert admit.block_ids[0] == leader.block_ids[0]
        assert admit.block_ids[1] not in leader.block_ids
        hand.step([(admit.slot, 51, 0)])
    assert num_computed(hand) == len(PROMPT) + 2


@pytest.mark.parametrize(("prompt", "num_cached", "copies"), [([1], 0, False), ([1, 2], 1, True), ([1] * 5, 4, False)])
def test_prompts_of_any_length(prompt: list[int], num_cached: int, copies: bool) -> None:
    hand = Hand()
    leader = hand.admit(prompt)
    follower = follow(hand, leader, prompt)
    hand.step([(leader.slot, 50, 0)])
    admit = hand.admit_of(follower)
    assert admit.num_cached_tokens == num_cached
    assert (admit.copied_block_id is not None) == copies


def test_requests_behind_a_follower_pass_it() -> None:
    hand = Hand()
    follower = follow(hand, hand.admit(PROMPT))
    assert hand.admit([9, 9]).request_id > follower
    assert not hand.is_admitted(follower)


@pytest.mark.parametrize("how", ["cancel", "error"])
def test_a_follower_computes_the_prompt_when_the_first_has_left_without_a_token(how: str) -> None:
    hand = Hand()
    leader = hand.admit(PROMPT)
    follower = follow(hand, leader)
    if how == "cancel":
        hand.scheduler.on_cancel(RequestId(leader.request_id))
        hand.tick()
    else:
        hand.step(errors=[make_error(leader)])
    admit = hand.admit_of(follower)
    assert (admit.num_cached_tokens, admit.copied_block_id) == (0, None)


def test_nobody_waits_for_a_first_that_failed_while_it_left() -> None:
    """The leader is preempted in its prefill, and its error comes before the shard knows of the drop (rule 6)."""
    hand = Hand(num_blocks=7)
    other = hand.admit([1, 2, 3, 4], max_new=20)
    leader = hand.admit(PROMPT[:4], max_new=20)
    follower = follow(hand, leader, PROMPT[:4], max_new=20)
    while not hand.plans[-1].drops:
        hand.step([(other.slot, 40, 0)])
    assert hand.plans[-1].drops[0].request_id == leader.request_id
    hand.step([(other.slot, 40, 0)], errors=[make_error(leader)], applied=hand.last_plan - 1)
    hand.step([(other.slot, 40, ENDED)])
    assert hand.is_admitted(follower)


def test_the_blocks_of_one_that_has_ended_are_not_copied() -> None:
    hand = Hand()
    leader = hand.admit(PROMPT, max_new=1)
    follower = follow(hand, leader, max_new=1)
    hand.step([(leader.slot, 50, ENDED)])
    admit = hand.admit_of(follower)
    assert (admit.num_cached_tokens, admit.copied_block_id) == (4, None)


def test_after_a_death_a_follower_does_not_copy_what_is_not_computed_again() -> None:
    hand = Hand(num_slots=1)
    leader = hand.admit(PROMPT)
    follower = follow(hand, leader)
    hand.step([(leader.slot, 50, 0)])  # the follower waits, because there is one slot
    hand.die()
    hand.begin()
    assert hand.is_admitted(leader.request_id)
    admit = hand.admit_of(follower)  # the leader has a token, so the follower need not wait, but no place is computed
    assert (admit.num_cached_tokens, admit.copied_block_id) == (0, None)


def test_a_part_of_a_block_is_copied_only_behind_whole_blocks_that_were_found() -> None:
    hand = Hand(num_blocks=8, num_slots=3)
    other = hand.admit(PROMPT, max_new=1)
    hand.step([(other.slot, 50, ENDED)])  # the full block of `other` is indexed
    # The leader looks nothing up and computes a block of its own. Of two equal blocks the second is not indexed.
    leader = hand.admit(PROMPT, wants_prompt_logprobs=True, max_new=2)
    hand.step(prefills=[(leader.slot, 6)], pieces=[make_piece(leader, 1, [-1.0] * 6)])
    follower = follow(hand, leader, max_new=2)
    third = hand.admit(list(range(20, 33)), max_new=11)
    for token in range(6):
        hand.step([(third.slot, token, 0)])
    assert hand.scheduler.stats().num_cached_blocks == 0  # the third request has taken the indexed block
    hand.step([(leader.slot, 50, 0), (third.slot, 50, ENDED)])
    admit = hand.admit_of(follower)
    assert (admit.num_cached_tokens, admit.copied_block_id) == (0, None)


def test_one_that_wants_prompt_logprobs_of_its_own_copies_nothing() -> None:
    hand = Hand()
    leader = hand.admit(PROMPT)
    follower = follow(hand, leader, wants_prompt_logprobs=True)
    hand.step([(leader.slot, 50, 0)])
    assert hand.admit_of(follower).num_cached_tokens == 0
