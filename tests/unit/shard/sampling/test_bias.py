"""Bias against plain sums."""

import torch
from textmill_shard.sampling.bias import Bias
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import CPU, Seat, random_logits, staged_scores


def test_bias_is_added_and_adds_up() -> None:
    logits = random_logits(3)
    seats = [
        Seat(SamplingParams(logit_bias=((4, 2.5), (0, -100.0), (4, 1.0)))),
        Seat(SamplingParams()),
        Seat(SamplingParams(logit_bias=((7, -1.0),))),
    ]
    expected = logits.clone()
    expected[0, 4] += 3.5
    expected[0, 0] -= 100.0
    expected[2, 7] -= 1.0
    torch.testing.assert_close(staged_scores(logits, seats, Bias(num_slots=3, device=CPU)), expected)
