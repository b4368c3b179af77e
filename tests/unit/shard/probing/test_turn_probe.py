"""A layer is found only when its code hands the turned queries and keys to the attention function as they are."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from textmill_shard.attention.base import RotaryTables
from textmill_shard.attention.deferred_turn import DeferredTurn, can_replace_turn, replace_turn, restore_turn
from textmill_shard.attention.kv_write import turn
from textmill_shard.probing.turn_probe import TURN_PROBE, find_turns
from torch import nn
from transformers import AttentionInterface

HEADS, WIDTH, LENGTH = 2, 8, 5


def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
    tables = RotaryTables(cos[0], sin[0], is_interleaved=False)
    return tuple(turn(x[0].transpose(0, 1), tables).transpose(0, 1).unsqueeze(0) for x in (q, k))  # type: ignore[return-value]


class Attention(nn.Module):
    """A layer in the form of transformers' layers."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="")
        self.scale = scale

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q = x.view(1, -1, HEADS, WIDTH).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, q + 1.0, cos, sin)
        if self.scale is not None:
            q = q * self.scale
        out, _ = AttentionInterface()[self.config._attn_implementation](self, q, k, k, None)
        return out.flatten(2)


class Other(Attention):
    """A layer that turns by a function of its own."""

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q = x.view(1, -1, HEADS, WIDTH).transpose(1, 2)
        out, _ = AttentionInterface()[self.config._attn_implementation](self, q, q, q, None)
        return out.flatten(2)


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def set_attn_implementation(self, name: str) -> None:
        for layer in self.layers:
            layer.config._attn_implementation = name

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        assert not use_cache
        x = torch.randn(1, input_ids.shape[1], HEADS * WIDTH)
        angles = torch.rand(1, input_ids.shape[1], WIDTH // 2).repeat(1, 1, 2)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return x


def found_in(*layers: nn.Module) -> list[int]:
    found = find_turns(Model(*layers), layers, torch.zeros(LENGTH, dtype=torch.int64))
    assert set(found.values()) <= {False}
    return [place for place, layer in enumerate(layers) if layer in found]


def test_layers_that_change_something_behind_the_turn_are_left_alone() -> None:
    assert found_in(Attention(), Attention(scale=2.0), Other(), Attention()) == [0, 3]


def test_a_turn_by_another_formula_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = apply_rotary_pos_emb

    def backwards(q: Any, k: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
        return forwards(q, k, cos, -sin)

    layer = Attention()
    assert found_in(layer) == [0]
    monkeypatch.setitem(Attention.forward.__globals__, "apply_rotary_pos_emb", backwards)
    assert found_in(layer) == []


def test_the_probe_leaves_layers_and_registry_without_its_traces() -> None:
    layer = Attention()
    assert can_replace_turn(layer)
    found_in(layer)
    assert "forward" not in vars(layer)
    with pytest.raises(AssertionError, match="has ended"):
        AttentionInterface()[TURN_PROBE](layer)


def test_a_deferred_turn_keeps_the_tables_of_each_token() -> None:
    layer, deferred = Attention(), DeferredTurn(is_interleaved=False)
    replace_turn(layer, deferred)
    seen = {}

    def attend(module: nn.Module, query: Any, key: Any, value: Any, mask: None) -> tuple[Any, None]:
        seen["tables"] = deferred.take(query, key)
        seen["turned"] = turn(query[0].transpose(0, 1), seen["tables"])
        return query.transpose(1, 2), None

    AttentionInterface.register("textmill_test_turn", attend)
    layer.config._attn_implementation = "textmill_test_turn"
    x = torch.randn(1, LENGTH, HEADS * WIDTH)
    angles = torch.rand(1, LENGTH, WIDTH // 2).repeat(1, 1, 2)
    layer(x, angles.cos(), angles.sin())
    heads_1HTD = x.view(1, LENGTH, HEADS, WIDTH).transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(heads_1HTD, heads_1HTD, angles.cos(), angles.sin())
    torch.testing.assert_close(seen["turned"], expected[0].transpose(0, 1))
    restore_turn(layer)
    assert "forward" not in vars(layer)


def test_a_deferred_turn_refuses_other_tensors_than_it_gave() -> None:
    deferred = DeferredTurn(is_interleaved=True)
    query, table = torch.zeros(3, 2, 1, 4), torch.zeros(1, 1, 4)
    deferred(query, query, table, table)
    with pytest.raises(AssertionError, match="something changed the queries"):
        deferred.take(query.clone(), query)
    tables = deferred.take(query, query)
    assert tables.cosines_TP.shape == (3, 4)  # one table for all sequences of a batch
    with pytest.raises(AssertionError, match="attends before it turns"):
        deferred.take(query, query)
