"""Log-probabilities against torch's log-softmax over the whole row."""

import numpy as np
import torch
from textmill_shard.sampling import logprobs
from textmill_shard.sampling.logprobs import TopTokens, prompt_logprobs

VOCAB = 300


def random_logits(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(5)) * 3


def top_tokens(logits: torch.Tensor, counts: list[int]) -> tuple[TopTokens, ...]:
    return logprobs.top_tokens(logits, counts, logits.logsumexp(-1))


def test_chosen_is_log_softmax_at_the_token():
    logits = random_logits(4)
    tokens = torch.tensor([0, 299, 17, 17])
    expected = logits.log_softmax(-1)[torch.arange(4), tokens]
    torch.testing.assert_close(logprobs.chosen_logprobs(logits, tokens, logits.logsumexp(-1)), expected)


def test_top_tokens_are_the_best_of_each_row():
    logits = random_logits(3)
    counts = [5, 1, 300]
    for row, (found, count) in enumerate(zip(top_tokens(logits, counts), counts, strict=True)):
        expected = logits[row].log_softmax(-1).sort(descending=True)
        assert found.ids.tolist() == expected.indices[:count].tolist()
        np.testing.assert_allclose(found.logprobs, expected.values[:count].numpy(), rtol=1e-5, atol=1e-5)
        assert (found.ids.dtype, found.logprobs.dtype) == (np.uint32, np.float32)


def test_ties_at_the_cut_are_all_present():
    logits = torch.tensor([[0.0, 3.0, 1.0, 1.0, 2.0, 1.0], [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    first, second = top_tokens(logits, [3, 1])
    assert first.ids.tolist() == [1, 4, 2, 3, 5]  # 3, 2, then the three that share the third place, by id
    assert second.ids.tolist() == [0]


def test_many_ties_come_in_the_order_of_their_ids():
    logits = torch.zeros(1, VOCAB)
    logits[0, 7::3] = 1.0
    (found,) = top_tokens(logits, [2])
    assert found.ids.tolist() == list(range(7, VOCAB, 3))


def test_a_row_with_nan_says_so_and_spoils_no_other():
    logits = random_logits(2)
    alone = top_tokens(logits[1:], [4])[0]
    logits[0, 7] = torch.nan
    broken, whole = top_tokens(logits, [4, 4])
    assert bool(np.isnan(broken.logprobs).all())
    assert whole.ids.tolist() == alone.ids.tolist()


def test_more_alternatives_than_the_vocabulary_holds():
    (found,) = top_tokens(torch.tensor([[1.0, 2.0]]), [5])
    assert found.ids.tolist() == [1, 0]


def test_prompt_logprobs_are_the_same_in_slices_of_any_size():
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(23, 8, generator=generator)
    head = torch.randn(8, VOCAB, generator=generator)
    targets = torch.randint(VOCAB, (23,), generator=generator)
    widest = 0

    def project(part: torch.Tensor) -> torch.Tensor:
        nonlocal widest
        widest = max(widest, len(part))
        return part @ head

    expected = (hidden @ head).log_softmax(-1)
    for slice_tokens in (1, 4, 23, 100):
        widest = 0
        found = prompt_logprobs(project, hidden, targets, 3, slice_tokens=slice_tokens)
        assert widest == min(slice_tokens, 23)
        np.testing.assert_allclose(found.logprobs, expected[torch.arange(23), targets].numpy(), rtol=1e-5, atol=1e-5)
        assert [entry.ids.tolist() for entry in found.top] == expected.topk(3).indices.tolist()


def test_prompt_logprobs_without_positions_or_alternatives():
    def identity(part: torch.Tensor) -> torch.Tensor:
        return part

    nothing = prompt_logprobs(identity, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2)
    assert (len(nothing.logprobs), nothing.top) == (0, ())
    one = prompt_logprobs(identity, torch.zeros(1, 4), torch.tensor([2]))
    assert one.top == ()
    np.testing.assert_allclose(one.logprobs, np.log([0.25]), rtol=1e-6)
