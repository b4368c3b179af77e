"""Allowed ids against a mask written out id by id."""

import torch
from textmill_shard.sampling.allowed_ids import AllowedIds
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import CPU, Seat, random_logits, sample, staged_scores


def test_all_other_ids_are_impossible() -> None:
    logits = random_logits(4)
    many = tuple(range(0, 50, 1))[::-1] * 2  # longer than the first lists, and each id twice
    seats = [
        Seat(SamplingParams(allowed_ids=(4, 7, 4))),
        Seat(SamplingParams()),
        Seat(SamplingParams(allowed_ids=(49,))),
        Seat(SamplingParams(allowed_ids=many)),
    ]
    expected = logits.clone()
    for id_ in range(50):
        if id_ not in (4, 7):
            expected[0, id_] = -torch.inf
        if id_ != 49:
            expected[2, id_] = -torch.inf
    torch.testing.assert_close(staged_scores(logits, seats, AllowedIds(num_slots=4, device=CPU)), expected)
    torch.testing.assert_close(staged_scores(logits[:1], seats[:1], AllowedIds(num_slots=1, device=CPU)), expected[:1])


def test_greedy_and_drawn_tokens_are_allowed_ones() -> None:
    logits = random_logits(40, vocab=3000)
    allowed = (7, 1999, 2500)
    best = [max(allowed, key=lambda id_: float(row[id_])) for row in logits]
    greedy = sample(logits, [Seat(SamplingParams(allowed_ids=allowed))] * 40)
    assert greedy.tokens_N.tolist() == best
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"typical_p": 0.5}, {"min_p": 0.1}):
        seats = [
            Seat(SamplingParams(do_sample=True, temperature=5.0, seed=seed, allowed_ids=allowed, **options))
            for seed in range(40)
        ]
        drawn = sample(logits, seats)
        assert set(drawn.tokens_N.tolist()) <= set(allowed)
        assert drawn.stuck_N is not None
        assert not drawn.stuck_N.any()


def test_row_without_a_possible_id_is_stuck_and_harms_no_other() -> None:
    logits = random_logits(4)
    for options in ({}, {"do_sample": True, "seed": 1}):
        seats = [
            Seat(SamplingParams(allowed_ids=(4,), bad_sequences=((4,),), **options)),
            Seat(SamplingParams(**options)),
            Seat(SamplingParams(allowed_ids=(0, 4), bad_sequences=((4,),), **options)),
            Seat(SamplingParams(allowed_ids=(5,), min_new_tokens=1, end_ids=(5,), **options)),
        ]
        sampled = sample(logits, seats)
        assert sampled.stuck_N is not None
        assert sampled.stuck_N.tolist() == [True, False, False, True]
        assert sampled.tokens_N[2] == 0
    assert sample(logits, [Seat(SamplingParams(logit_bias=((1, 2.0),)))] * 4).stuck_N is None
