"""The seam to transformers, whose attention layers call `paged_attention`, which calls the layer's own `PagedLayer`."""

# T tokens of the step, H local query heads, K local key/value heads, D key width, E value width

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from textmill_shard.attention.base import AttentionBackend, AttentionRule, AttentionStep
from textmill_shard.attention.deferred_turn import DeferredTurn
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import KvPool

# The mask registry does not have this name, so transformers builds no mask, and no [T, T] tensor exists.
PAGED_ATTENTION = "textmill_paged"
_LAYER_ATTRIBUTE = "textmill_paged_layer"


@dataclass(slots=True)
class StepContext:
    """The facts of the step under way that the layers read. The model runner sets them before the forward pass."""

    backend: AttentionBackend
    pool: KvPool | None = None
    is_long_rope_T: torch.Tensor | None = None  # bool; None where the model has one rotary table
    attention: AttentionStep | None = None

    def begin(self, batch: ForwardBatch) -> None:
        assert self.pool is not None, "allocate_kv comes before forward"
        self.is_long_rope_T = batch.is_long_rope_T
        self.attention = self.backend.prepare(batch, block_size=self.pool.block_size)


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """One attention layer, which writes keys and values to their places and then attends over the block table."""

    context: StepContext
    index: int
    rule: AttentionRule
    turn: DeferredTurn | None = None  # None: queries and keys come turned

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return `[B, n, H, E]` for query `[B, H, n, D]`, key `[B, K, n, D]`, value `[B, K, n, E]`; T = B * n tokens.

        A flat batch has B = 1. Decode rows of a model with states have n = 1.
        """
        pool, attention = self.context.pool, self.context.attention
        assert pool is not None
        assert attention is not None, "begin comes before the forward"
        key_pool, value_pool = pool.keys[self.index], pool.values[self.index]
        tables = None if self.turn is None else self.turn.take(query, key)
        query_THD, key_TKD, value_TKE = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
        scales = pool.scales[self.index]
        query_THD = attention.write(query_THD, key_TKD, value_TKE, key_pool, value_pool, tables, scales)
        out_THE = attention.attend(query_THD, key_pool, value_pool, self.rule, scales)
        return out_THE.view(query.shape[0], query.shape[2], *out_THE.shape[1:])


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend for a layer of transformers.

    `kwargs` are not read, because the probe has already found what varies from layer to layer.
    """
    return getattr(module, _LAYER_ATTRIBUTE)(query, key, value), None


def attach_layer(module: nn.Module, layer: PagedLayer) -> None:
    """Attach the `PagedLayer` to an attention module that the probe has found."""
    setattr(module, _LAYER_ATTRIBUTE, layer)


def paged_layers(model: nn.Module) -> dict[str, int]:
    """Return the number of each attention layer in the pool, by the path of its module."""
    layers = ((path, getattr(module, _LAYER_ATTRIBUTE, None)) for path, module in model.named_modules())
    return {path: layer.index for path, layer in layers if layer is not None}


def set_text_attention(model: Any, name: str) -> None:
    """Let the text layers attend by an implementation of transformers' registry.

    The tower of a model with images keeps torch's own attention, because its patches are no tokens of a text.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "vision_config", None) is None or config.get_text_config() is config:
        model.set_attn_implementation(name)
    else:
        model.set_attn_implementation({"": "sdpa", "text_config": name, "vision_config": "sdpa"})


def register_attention() -> None:
    """Make `PAGED_ATTENTION` known to transformers. A second call changes nothing."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention)
