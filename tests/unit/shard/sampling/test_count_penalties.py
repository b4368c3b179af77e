"""Presence and frequency penalty against the contract's formula in plain Python."""

import numpy as np
import torch
from textmill_shard.sampling.count_penalties import CountPenalties
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import CPU, Seat, random_logits, rows_of, staged_scores

TEXTS = [([1, 2, 3, 4], [5, 5, 1]), ([7], []), ([9, 9, 0, 49, 8], [9])]  # (prompt, output), unlike lengths


def test_presence_and_frequency_count_output_tokens_only() -> None:
    logits = random_logits(len(TEXTS))
    settings = [(0.5, 0.0), (0.0, 0.25), (-1.0, 1.5)]
    expected = logits.clone()
    seats = []
    for row, (prompt, output) in enumerate(TEXTS):
        presence, frequency = settings[row]
        seats.append(Seat(SamplingParams(presence_penalty=presence, frequency_penalty=frequency), prompt, output))
        for token in range(logits.shape[1]):
            count = output.count(token)
            expected[row, token] -= presence * (count > 0) + frequency * count
    found = staged_scores(logits, seats, CountPenalties(num_slots=len(seats), device=CPU))
    torch.testing.assert_close(found, expected)


def test_tokens_that_are_appended_count_like_those_of_an_admit() -> None:
    params = SamplingParams(presence_penalty=0.75, frequency_penalty=0.5)
    stage = CountPenalties(num_slots=2, device=CPU)
    outputs: list[list[int]] = [[], [4, 4]]
    for slot, output in enumerate(outputs):
        stage.admit(slot, params, Seat(params, [1], output).text)
    rows = rows_of([0, 1], is_all=True)
    tokens = np.random.default_rng(3).integers(0, 400, (300, 2))
    tokens[:3, 0] = [0, 7, 0]  # an empty output begins with id 0
    for pair in tokens.tolist():
        stage.append(rows, torch.tensor(pair))
        for output, token in zip(outputs, pair, strict=True):
            output.append(token)
    scores = torch.zeros(2, 500)
    stage.apply(scores, rows)
    expected = [[-0.75 * (token in output) - 0.5 * output.count(token) for token in range(500)] for output in outputs]
    assert scores.tolist() == expected  # halves and quarters: exact
