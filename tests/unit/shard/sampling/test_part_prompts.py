"""Ranks that share a vocabulary rate the tokens of a prompt as transformers' log-softmax of whole rows does."""

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.ranks import RankRoom
from textmill_shard.sampling.logprobs import PromptLogprobs
from textmill_shard.sampling.part_prompts import part_prompt_logprobs

from tests.fakes.thread_ranks import Meeting, ThreadRoom

SIZES = (40, 61)
VOCAB = sum(SIZES)


def rate(logits_TV: torch.Tensor, targets_T: torch.Tensor, top_n: int, meeting: Meeting) -> list[PromptLogprobs]:
    """Let two ranks rate positions whose hidden states are numbers of rows of logits. A slice has 4 positions."""

    def one(rank: int) -> PromptLogprobs:
        parallel = TensorParallel(rank, 2, room=cast(RankRoom, ThreadRoom(meeting, rank)))
        part_TV = logits_TV.split(SIZES, dim=1)[rank]
        positions_T = torch.arange(len(logits_TV))
        return part_prompt_logprobs(
            lambda rows_n: part_TV[rows_n],
            SharedVocabulary(parallel, SIZES),
            positions_T,
            targets_T,
            top_n,
            slice_tokens=4,
        )

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, (0, 1)))


def make(num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    logits_TV = torch.randn(num_positions, VOCAB, generator=random) * 3
    return logits_TV, torch.randint(VOCAB, (num_positions,), generator=random)


@pytest.mark.parametrize("top_n", [0, 3])
def test_both_ranks_find_the_log_softmax(top_n: int) -> None:
    logits_TV, targets_T = make(10)
    meeting = Meeting()
    expected_TV = logits_TV.double().log_softmax(-1)
    for found in rate(logits_TV, targets_T, top_n, meeting):
        np.testing.assert_allclose(found.logprobs, expected_TV.gather(1, targets_T.unsqueeze(1))[:, 0], atol=1e-5)
        assert len(found.top) == (10 if top_n else 0)
        for row, top in enumerate(found.top):
            best = expected_TV[row].topk(top_n)
            assert top.ids.tolist() == best.indices.tolist()
            np.testing.assert_allclose(top.logprobs, best.values, atol=1e-5)
    # Of each position the normaliser and the target; for alternatives the id and the logit of 3 + 16 ids too.
    words = 2 + 2 * (3 + 16) * (top_n > 0)
    assert meeting.sent_bytes == [4 * words * rows for rows in (4, 4, 2)]


def test_ties_beyond_what_travels_lay_that_position_together() -> None:
    logits_TV, targets_T = make(3)
    logits_TV[1, 5:70] = 20.0
    meeting = Meeting()
    for found in rate(logits_TV, targets_T, 2, meeting):
        assert found.top[1].ids.tolist() == list(range(5, 70))
        assert [len(top.ids) for top in found.top] == [2, 65, 2]
    assert meeting.sent_bytes == [4 * 3 * (2 + 2 * 18), 4 * max(SIZES)]


def test_logits_that_are_not_finite_are_not_a_number() -> None:
    logits_TV, targets_T = make(4)
    logits_TV[1, 90] = torch.nan
    logits_TV[2, 3] = torch.inf
    for found in rate(logits_TV, targets_T, 2, Meeting()):
        assert np.isfinite(found.logprobs).tolist() == [True, False, False, True]
