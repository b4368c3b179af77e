"""Code that keeps constants on the device gives what transformers' code gives, number by number."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from textmill_shard.layouts.device_constants import keep_constants
from torch import nn
from transformers import Gemma3nTextConfig, PhimoeConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

BORDER = 8
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "original_max_position_embeddings": BORDER,
    "short_factor": [1.0, 1.5],
    "long_factor": [1.0, 1.5],
    "short_mscale": 1.2,
    "long_mscale": 1.4,
}
SIZES = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 32}


def rotary(**fields: Any) -> nn.Module:
    layer: nn.Module = PhimoeRotaryEmbedding(PhimoeConfig(**SIZES, **fields))
    return layer


def kept(layer: nn.Module, is_long_T: torch.Tensor | None) -> nn.Module:
    model = nn.Sequential(layer, nn.Linear(1, 1))
    keep_constants(model, SimpleNamespace(is_long_rope_T=is_long_T))  # type: ignore[arg-type]
    return layer


def test_tables_of_one_kind_are_those_of_transformers() -> None:
    x, positions = torch.zeros(1, 5, 16, dtype=torch.bfloat16), torch.tensor([[0, 3, 1, 30, 7]])
    expected = rotary()(x, positions)
    found = kept(rotary(), None)(x, positions)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("is_long", [False, True])
def test_each_token_has_the_table_that_a_text_of_its_length_has_alone(is_long: bool) -> None:
    x, positions = torch.zeros(1, 3, 16), torch.tensor([[0, 5, 20 if is_long else 6]])
    expected = rotary(rope_scaling=LONG_ROPE)(x, positions)
    beside = torch.cat([positions, torch.tensor([[4, 2]])], dim=1)  # two tokens of a request of the other side
    is_long_T = torch.tensor([is_long] * 3 + [not is_long] * 2)
    found = kept(rotary(rope_scaling=LONG_ROPE), is_long_T)(torch.zeros(1, 5, 16), beside)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine[:, :3], theirs)
        assert not torch.equal(mine[:, 1], mine[:, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_activations_are_those_of_transformers(dtype: torch.dtype) -> None:
    config = Gemma3nTextConfig(
        hidden_size=8, intermediate_size=[16], num_hidden_layers=1, activation_sparsity_pattern=[0.95]
    )
    torch.manual_seed(0)
    layer = Gemma3nTextMLP(config, layer_idx=0).to(dtype)
    x = torch.randn(3, 8).to(dtype)
    expected = layer(x)
    assert expected.count_nonzero()
    keep_constants(layer, SimpleNamespace(is_long_rope_T=None))  # type: ignore[arg-type]
    assert torch.equal(layer(x), expected)
    assert "_gaussian_topk" in vars(layer)
