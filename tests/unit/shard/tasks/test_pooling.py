"""Each way of pooling is computed token by token, without padding, as its formula says."""

import math

import pytest
import torch
from textmill_shard.tasks.pooling import Pooling, PoolingMode

LENGTHS = (5, 2, 7)
FORMULAS = {
    PoolingMode.CLS: lambda tokens: tokens[0],
    PoolingMode.LAST: lambda tokens: tokens[-1],
    PoolingMode.MAX: lambda tokens: torch.stack(tokens).max(dim=0).values,
    PoolingMode.MEAN: lambda tokens: sum(tokens) / len(tokens),
    PoolingMode.MEAN_BY_ROOT: lambda tokens: sum(tokens) / math.sqrt(len(tokens)),
    PoolingMode.WEIGHTED_MEAN: lambda tokens: (
        sum(weight * token for weight, token in enumerate(tokens, 1)) / sum(range(1, len(tokens) + 1))
    ),
}


def padded_rows() -> torch.Tensor:
    """Return `[3, 7, 4]` with NaN in the padding."""
    hidden = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(3))
    for row, length in enumerate(LENGTHS):
        hidden[row, length:] = float("nan")
    return hidden


@pytest.mark.parametrize("mode", PoolingMode)
def test_a_row_is_pooled_over_its_own_tokens(mode: PoolingMode) -> None:
    hidden = padded_rows()
    pooled = Pooling((mode,)).pool(hidden, lengths_R=torch.tensor(LENGTHS), prompt_lengths=(0, 0, 0))
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(pooled[row], FORMULAS[mode](list(hidden[row, :length])))


def test_a_prompt_is_left_out_of_a_mean_where_the_files_say_so() -> None:
    hidden = padded_rows()
    pooling = Pooling((PoolingMode.MEAN,), includes_prompt=False)
    pooled = pooling.pool(hidden, lengths_R=torch.tensor(LENGTHS), prompt_lengths=(3, 0, 1))
    torch.testing.assert_close(pooled[0], hidden[0, 3:5].mean(dim=0))
    torch.testing.assert_close(pooled[1], hidden[1, :2].mean(dim=0))
    torch.testing.assert_close(pooled[2], hidden[2, 1:7].mean(dim=0))
    whole = Pooling((PoolingMode.MEAN,)).pool(hidden, lengths_R=torch.tensor(LENGTHS), prompt_lengths=(3, 0, 1))
    torch.testing.assert_close(whole[0], hidden[0, :5].mean(dim=0))


def test_several_ways_stand_behind_each_other() -> None:
    hidden = padded_rows()
    pooled = Pooling((PoolingMode.CLS, PoolingMode.MAX)).pool(
        hidden, lengths_R=torch.tensor(LENGTHS), prompt_lengths=(0, 0, 0)
    )
    assert pooled.shape == (3, 8)
    torch.testing.assert_close(pooled[1], torch.cat([hidden[1, 0], hidden[1, :2].max(dim=0).values]))
