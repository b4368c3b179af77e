"""Finds the attention layers whose rotary turn can move into the write of keys and values, by running the model once.

A layer is found when the function by which its code turns queries and keys has the results of one of the two formulas
of `attention/kv_write.py`, and when the attention function gets these very tensors.
"""

# L tokens of the probe, H query heads, K key/value heads, D key width, P rotary width

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from textmill_shard.attention.base import RotaryTables
from textmill_shard.attention.deferred_turn import TURN_FUNCTION, can_replace_turn, replace_turn, restore_turn
from textmill_shard.attention.kv_write import turn
from textmill_shard.attention.seam import set_text_attention

TURN_PROBE = "textmill_turn_probe"
# Largest difference from the formula, relative to the largest value: modelling code rounds after each operation.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class _WatchedTurn:
    """Calls the layer's own function, and keeps what the function got and gave."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.is_interleaved: bool | None = None  # None: neither formula has the function's results
        self.turned: tuple[torch.Tensor, torch.Tensor] | None = None
        self.num_calls = 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        turned = self._function(query, key, *arguments, **named)
        self.num_calls += 1
        self.turned = turned
        tables = [value for value in (*arguments, *named.values()) if torch.is_tensor(value)][:2]
        if len(tables) == 2 and all(value.dim() == 3 and value.shape[0] == 1 for value in tables):
            self.is_interleaved = _formula(turned, query, key, tables)
        return turned


def find_turns(model: Any, attention_modules: Sequence[nn.Module], text_L: torch.Tensor) -> dict[nn.Module, bool]:
    """Return the layers that are found, each with whether its turn is interleaved. Leaves the model as it was.

    The attention implementation of the model is another one afterwards; the caller sets the next.
    """
    watched = {}
    for module in attention_modules:
        if can_replace_turn(module):
            watched[module] = _WatchedTurn(type(module).forward.__globals__[TURN_FUNCTION])
            replace_turn(module, watched[module])
    attended: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
    ) -> tuple[torch.Tensor, None]:
        attended[module] = query, key
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(TURN_PROBE, attend)
    try:
        set_text_attention(model, TURN_PROBE)
        with torch.inference_mode():
            model(input_ids=text_L.unsqueeze(0), use_cache=False)
    finally:
        for module in watched:
            restore_turn(module)
        # The registry would keep the tensors alive.
        AttentionInterface.register(TURN_PROBE, _ended)
    return {
        module: function.is_interleaved
        for module, function in watched.items()
        if function.is_interleaved is not None
        and function.num_calls == 1
        and function.turned is not None
        and module in attended
        and all(given is turned for given, turned in zip(attended[module], function.turned, strict=True))
    }


def _formula(turned: Any, query: torch.Tensor, key: torch.Tensor, tables: Sequence[torch.Tensor]) -> bool | None:
    """Return whether the interleaved formula gives `turned`, or the one of halves (False), or neither (None)."""
    cosines_TP, sines_TP = tables[0][0], tables[1][0]
    for is_interleaved in (False, True):
        known = RotaryTables(cosines_TP, sines_TP, is_interleaved=is_interleaved)
        if all(_is_turn(found, given, known) for found, given in zip(turned, (query, key), strict=True)):
            return is_interleaved
    return None


def _is_turn(found: torch.Tensor, given: torch.Tensor, tables: RotaryTables) -> bool:
    if given.dim() != 4 or given.shape[2] != tables.cosines_TP.shape[0] or found.shape != given.shape:
        return False
    if tables.cosines_TP.shape[1] > given.shape[3] or tables.cosines_TP.shape[1] % 2:
        return False
    expected_THD = turn(given[0].transpose(0, 1), tables).float()
    difference: float = (found[0].transpose(0, 1).float() - expected_THD).abs().max().item()
    return difference <= _TOLERANCE[given.dtype] * expected_THD.abs().max().item()


def _ended(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("the probe of the rotary turn has ended")
