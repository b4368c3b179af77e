"""The mask of the end ids against transformers' processor."""

import pytest
import torch
from textmill_shard.sampling.min_new_tokens import MinNewTokens
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import MinNewTokensLengthLogitsProcessor

from tests.fakes.sampling_hand import (
    CPU,
    Seat,
    random_logits,
    rows_of,
    sample,
    seated_sampler,
    staged_scores,
    step_rows,
)


@pytest.mark.parametrize("num_output", [0, 1, 2, 3])
def test_end_ids_are_masked_until_min_new_tokens(num_output: int) -> None:
    logits = random_logits(1)
    prompt, output = [1, 2, 3], [5, 6, 7][:num_output]
    seats = [Seat(SamplingParams(min_new_tokens=2, end_ids=(0, 17)), prompt, output)]
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 2, [0, 17])
    expected = processor(torch.tensor([prompt + output]), logits.clone())
    found = staged_scores(logits, seats, MinNewTokens(num_slots=1, device=CPU))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_unlike_numbers_of_end_ids_stay_apart() -> None:
    seats = [
        Seat(SamplingParams(min_new_tokens=1, end_ids=(3,))),
        Seat(SamplingParams(min_new_tokens=1, end_ids=(0, 1, 2))),
    ]
    found = staged_scores(torch.zeros(2, 5), seats, MinNewTokens(num_slots=2, device=CPU))
    assert torch.isinf(found).tolist() == [[False, False, False, True, False], [True, True, True, False, False]]


def test_a_request_leaves_the_stage_with_its_last_needed_token() -> None:
    stage = MinNewTokens(num_slots=2, device=CPU)
    for slot, least in enumerate((2, 5)):
        seat = Seat(SamplingParams(min_new_tokens=least, end_ids=(0,)), output=[9])
        stage.admit(slot, seat.params, seat.text)
    rows = rows_of([0, 1], is_all=True)
    assert stage.append(rows, torch.tensor([1, 1])).tolist() == [0]
    one = rows_of([1], is_all=False)
    assert [stage.append(one, torch.tensor([1])).tolist() for _ in range(3)] == [[], [], [1]]


def test_the_sampler_lets_the_end_through_when_it_is_due() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0]])  # the end would be the best
    sampler = seated_sampler([Seat(SamplingParams(min_new_tokens=3, end_ids=(0,)), [1], [2])])
    tokens = []
    for _ in range(4):
        rows = step_rows(sampler, [0])
        sampled = sampler.sample(logits, rows).tokens_N
        sampler.append(rows, sampled)
        tokens += sampled.tolist()
    assert tokens == [1, 1, 0, 0]


def test_a_request_that_has_enough_tokens_when_it_comes_back_is_not_masked() -> None:
    params = SamplingParams(min_new_tokens=2, end_ids=(0,))
    logits = torch.tensor([[5.0, 1.0, 0.0]] * 2)
    assert sample(logits, [Seat(params, [1], [2, 2]), Seat(params, [1], [2])]).tokens_N.tolist() == [0, 1]
