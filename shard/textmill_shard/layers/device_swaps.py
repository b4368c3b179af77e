"""The swaps of a GPU: what the kernels of `triton_kernels/` can take over from transformers' layers."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from textmill_shard.attention.deferred_turn import DeferredTurn, replace_turn
from textmill_shard.options import DEVICE_SWAPS
from textmill_shard.probing.turn_probe import find_turns


def defer_turns(
    model: Any, attention_modules: Sequence[nn.Module], text_L: torch.Tensor, *, disabled: Collection[str]
) -> dict[nn.Module, DeferredTurn]:
    """Let the write of keys and values turn them in all layers where that gives the same, and return these layers.

    Runs the model once on `text_L` (int64).
    """
    assert "rotary_turn" in DEVICE_SWAPS
    if "rotary_turn" in disabled:
        return {}
    turns = {}
    for module, is_interleaved in find_turns(model, attention_modules, text_L).items():
        turns[module] = DeferredTurn(is_interleaved=is_interleaved)
        replace_turn(module, turns[module])
    return turns
