"""Keeps the rotary tables of a layer until its queries and keys are written, so that the write can turn both.

Modelling code calls a function of its file, `apply_rotary_pos_emb`, and hands the results to the attention function. A
`DeferredTurn` takes the place of this function for one attention layer. `probing/turn_probe.py` finds the layers for
which nothing happens between the two calls.
"""

# B sequences, n tokens of each, H query heads, K key/value heads, D key width, P rotary width

from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from textmill_shard.attention.base import RotaryTables

TURN_FUNCTION = "apply_rotary_pos_emb"


class DeferredTurn:
    """Stands in for `apply_rotary_pos_emb` in one layer. Each call is followed by one `take`."""

    def __init__(self, *, is_interleaved: bool) -> None:
        self._is_interleaved = is_interleaved
        self._given: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        *more: Any,
        **named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `[B, H, n, D]` and `[B, K, n, D]` as they came, and keep the tables `[B or 1, n, P]`."""
        self._given = query, key, cosines, sines
        return query, key

    def take(self, query: torch.Tensor, key: torch.Tensor) -> RotaryTables:
        """Return the tables of the B * n tokens of the tensors that the call got, and forget the call."""
        assert self._given is not None, "the layer attends before it turns"
        turned_query, turned_key, cosines, sines = self._given
        assert query is turned_query, "something changed the queries behind the turn"
        assert key is turned_key, "something changed the keys behind the turn"
        self._given = None
        sizes = (query.shape[0], -1, -1)
        return RotaryTables(
            cosines.expand(sizes).flatten(0, 1), sines.expand(sizes).flatten(0, 1), is_interleaved=self._is_interleaved
        )


def can_replace_turn(module: nn.Module) -> bool:
    """Whether the layer's `forward` is a plain function that calls `apply_rotary_pos_emb` of its own file."""
    forward = type(module).forward
    return (
        isinstance(forward, FunctionType)
        and not hasattr(forward, "__wrapped__")
        and "forward" not in vars(module)
        and TURN_FUNCTION in forward.__code__.co_names
        and TURN_FUNCTION in forward.__globals__
    )


def replace_turn(module: nn.Module, function: Any) -> None:
    """Let this one layer call `function` for `apply_rotary_pos_emb`. The class and its file stay as they are."""
    forward = type(module).forward
    assert isinstance(forward, FunctionType), forward
    copy = FunctionType(
        forward.__code__,
        {**forward.__globals__, TURN_FUNCTION: function},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(copy, module)


def restore_turn(module: nn.Module) -> None:
    """Take back what `replace_turn` did."""
    del module.forward
