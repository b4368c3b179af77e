"""The mask of a grammar comes after the bias, and each draw has a new mask."""

import numpy as np
import torch
from textmill_shard.sampling.grammar_mask import GrammarMask
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import CPU, Seat, rows_of, sample, staged_scores

MATCHED = SamplingParams(has_grammar=True)


def mask(*allowed: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return np.isin(np.arange(4), allowed)


def test_only_what_the_grammar_allows_stays_possible() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]] * 2)
    seats = [Seat(MATCHED, allowed_V=mask(0, 3)), Seat(SamplingParams())]
    found = staged_scores(logits, seats, GrammarMask(num_slots=2, device=CPU))
    assert found.tolist() == [[2.0, -torch.inf, -torch.inf, 0.5], [2.0, -2.0, 1.0, 0.5]]


def test_a_new_mask_takes_the_place_of_the_last() -> None:
    stage = GrammarMask(num_slots=1, device=CPU)
    rows = rows_of([0], is_all=True)
    for allowed in ([1], [2, 3]):
        stage.set_allowed(0, mask(*allowed))
        scores = torch.zeros(1, 4)
        stage.apply(scores, rows)
        assert (scores[0] == 0.0).nonzero().flatten().tolist() == allowed


def test_a_slot_without_a_mask_is_not_masked_by_its_last_occupant() -> None:
    stage = GrammarMask(num_slots=1, device=CPU)
    stage.set_allowed(0, mask(1))
    stage.admit(0, MATCHED, Seat(MATCHED).text)
    scores = torch.zeros(1, 4)
    stage.apply(scores, rows_of([0], is_all=True))
    assert scores.tolist() == [[0.0] * 4]


def test_a_grammars_mask_is_final_and_replaces_that_of_min_new_tokens() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
    params = SamplingParams(logit_bias=((1, 100.0), (3, 2.0)), min_new_tokens=5, end_ids=(3,), has_grammar=True)
    seats = [Seat(params, [0], [1], mask(0, 3)), Seat(SamplingParams(), [0])]
    assert sample(logits, seats).tokens_N.tolist() == [3, 3]  # 0.5 + 2 beats 2; 1 is not allowed, whatever its bias
