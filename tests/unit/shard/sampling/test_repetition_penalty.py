"""The repetition penalty against transformers' processor."""

import pytest
import torch
from textmill_shard.sampling.repetition_penalty import RepetitionPenalty
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import RepetitionPenaltyLogitsProcessor

from tests.fakes.sampling_hand import CPU, Seat, random_logits, staged_scores

TEXTS = [([1, 2, 3, 4], [5, 5, 1]), ([7], []), ([9, 9, 0, 49, 8], [9])]  # (prompt, output), unlike lengths


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits(len(TEXTS))
    seats = [Seat(SamplingParams(repetition_penalty=penalty), *text) for text in TEXTS]
    expected = [
        RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits[row : row + 1].clone())[0]
        for row, (prompt, output) in enumerate(TEXTS)
    ]
    found = staged_scores(logits, seats, RepetitionPenalty(num_slots=len(seats), device=CPU))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)


def test_each_row_has_its_own_penalty_and_rows_without_one_stay() -> None:
    logits = torch.tensor([[4.0, -4.0, 1.0]] * 3)
    seats = [
        Seat(SamplingParams(repetition_penalty=2.0), [0, 1]),
        Seat(SamplingParams(), [0, 1]),
        Seat(SamplingParams(repetition_penalty=4.0), [1, 2]),
    ]
    found = staged_scores(logits, seats, RepetitionPenalty(num_slots=3, device=CPU))
    assert found.tolist() == [[2.0, -8.0, 1.0], [4.0, -4.0, 1.0], [4.0, -16.0, 0.25]]
