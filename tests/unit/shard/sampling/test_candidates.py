"""`best_scores` against torch.topk."""

import pytest
import torch
from textmill_shard.sampling.candidates import GROUP_IDS, best_scores


@pytest.mark.parametrize("vocab", [2048, 2051, 104, 100])
@pytest.mark.parametrize("num_candidates", [1, 7, 100])
def test_best_scores_are_those_of_topk(vocab, num_candidates):
    scores = torch.randn(5, vocab, generator=torch.Generator().manual_seed(vocab))
    values, ids = best_scores(scores, num_candidates)
    expected = scores.topk(num_candidates, dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_best_scores_that_share_a_group_are_all_found():
    num_groups = 64
    scores = torch.zeros(1, num_groups * GROUP_IDS)
    wanted = [3 + number * num_groups for number in range(GROUP_IDS)]  # all in the group of id 3
    scores[0, wanted] = torch.arange(1.0, GROUP_IDS + 1)
    assert best_scores(scores, GROUP_IDS)[1].tolist() == [wanted[::-1]]


def test_known_candidates_are_taken_where_they_suffice():
    scores = torch.randn(3, 2048, generator=torch.Generator().manual_seed(1))
    known = scores.flip(1).topk(20, dim=-1).indices  # ids of other scores, which a search would not find
    values, ids = best_scores(scores, 20, known)
    assert torch.equal(ids, known)
    assert torch.equal(values, scores.gather(1, known))
    assert torch.equal(best_scores(scores, 7, known)[1], known[:, :7])
    assert torch.equal(best_scores(scores, 21, known)[1], scores.topk(21, dim=-1).indices)


def test_equal_scores_give_distinct_ids():
    scores = torch.zeros(2, 512)
    scores[1, 100:140] = 1.0
    values, ids = best_scores(scores, 32)
    assert [len(set(row)) for row in ids.tolist()] == [32, 32]
    assert torch.equal(values, scores.gather(1, ids))
    assert values[1].min() == 1.0


def test_impossible_tokens_come_last():
    scores = torch.full((1, 512), -torch.inf)
    scores[0, [5, 500]] = torch.tensor([1.0, 2.0])
    values, ids = best_scores(scores, 4)
    assert ids[0, :2].tolist() == [500, 5]
    assert values[0, 2:].tolist() == [-torch.inf] * 2
