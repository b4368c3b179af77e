"""What an attention backend is: it makes an object of each step, which attends layer by layer."""

# T tokens of the step, H local query heads, K local key/value heads, D key width, E value width

from dataclasses import dataclass
from typing import Protocol

import torch

from textmill_shard.model.forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How one layer attends; fixed when the model is built."""

    scaling: float
    window_tokens: int | None = None  # keys seen by a token, itself included; None = all
    chunk_tokens: int | None = None  # attention stays inside runs of this many tokens; None = no such border
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    sinks_H: torch.Tensor | None = None  # a score per head that takes weight and gives nothing


class AttentionStep(Protocol):
    """What a backend made of the batch of one step: the indices that every layer of the step attends with."""

    def attend(
        self, query_THD: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """Give `[T, H, E]`, once per layer.

        K and V of this step already stand in the pools `[blocks, block_size, K, D or E]`.
        """
        ...


class AttentionBackend(Protocol):
    """Chosen when the layout is built."""

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> AttentionStep:
        """Once per step, before the first layer; `block_size` counts tokens."""
        ...
