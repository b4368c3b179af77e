"""Ranks reduce in the type of the model: half of the bytes of float32, and one exchange for each divided layer."""

import pytest
import torch
import torch.distributed as dist
from textmill_shard.distributed.index_ranges import IndexRange
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layers.parallel_layers import RowParallelLinear, VocabularyParallelEmbedding, add_up_outputs
from torch import nn

PARALLEL = TensorParallel(rank=0, world_size=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_are_exchanged_in_the_type_of_the_model(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, torch.Size]] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: seen.append((tensor.dtype, tensor.shape)))
    x = torch.randn(1, 3, 8).to(dtype)
    attention_out = RowParallelLinear(torch.randn(6, 8).to(dtype), torch.randn(6).to(dtype), PARALLEL)
    embedding = VocabularyParallelEmbedding(torch.randn(5, 6).to(dtype), PARALLEL, IndexRange(0, 5))
    experts = nn.Linear(8, 6, dtype=dtype)
    add_up_outputs(experts, PARALLEL)
    for layer, given in ((attention_out, x), (embedding, torch.tensor([[0, 7, 2]])), (experts, x)):
        assert layer(given).dtype is dtype
    assert seen == [(dtype, torch.Size((1, 3, 6)))] * 3
