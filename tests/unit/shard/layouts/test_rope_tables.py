"""Each token takes the table of its request, and the step asks the device for no position."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from textmill_shard.layouts.rope_tables import choose_long_tables_by_token
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

BORDER = 8
SHORT, LONG = torch.tensor([[0, 3, 7]]), torch.tensor([[2, 5, 20]])
X = torch.zeros(1, 3, 16, dtype=torch.bfloat16)


def rotary() -> Any:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": BORDER,
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 5.0],
    }
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0}
    config = Phi3Config(**sizes, max_position_embeddings=32, original_max_position_embeddings=BORDER, rope_scaling=rope)
    return Phi3RotaryEmbedding(config)


def by_token(is_long_T: torch.Tensor | None) -> tuple[Any, SimpleNamespace]:
    module, context = rotary(), SimpleNamespace(is_long_rope_T=is_long_T)
    choose_long_tables_by_token(nn.Sequential(module), context, border=BORDER)  # type: ignore[arg-type]
    return module, context


def test_tokens_of_both_sides_have_the_tables_that_their_texts_have_alone() -> None:
    module, _ = by_token(torch.tensor([False] * 3 + [True] * 3))
    found = module(X.repeat(1, 2, 1), torch.cat([SHORT, LONG], dim=1))
    for mine, short, long in zip(found, rotary()(X, SHORT), rotary()(X, LONG), strict=True):
        assert torch.equal(mine, torch.cat([short, long], dim=1))


def test_long_requests_that_begin_have_the_long_table() -> None:
    module, _ = by_token(torch.tensor([True] * 3))
    for mine, theirs in zip(module(X, SHORT), rotary()(X, torch.cat([SHORT, LONG], dim=1)), strict=True):
        assert torch.equal(mine, theirs[:, :3])


@pytest.mark.parametrize("positions", [SHORT, LONG, torch.tensor([[BORDER - 1]]), torch.tensor([[BORDER]])])
def test_a_text_alone_has_the_table_of_transformers(positions: torch.Tensor) -> None:
    module, context = by_token(torch.tensor([True]))
    module(X[:, :1], SHORT[:, :1])  # the table of a step stays with the step
    context.is_long_rope_T = None
    for mine, theirs in zip(module(X, positions), rotary()(X, positions), strict=True):
        assert torch.equal(mine, theirs)


class Operations(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_step_looks_for_no_longest_position() -> None:
    module, _ = by_token(torch.tensor([True, False, True]))
    with Operations() as seen:
        module(X, LONG)
    assert "cos" in seen.names
    assert not seen.names & {"max", "amax", "_local_scalar_dense", "is_nonzero", "item"}
