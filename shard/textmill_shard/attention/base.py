"""What an attention backend is: it prepares a step once, then attends layer by layer."""

# T tokens of the step, H local query heads, K local key/value heads, D key width, E value width

from dataclasses import dataclass
from typing import Any, Protocol

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


class AttentionBackend(Protocol):
    """`prepare` once per step, then `attend` once per layer with what it gave."""

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> Any: ...

    def attend(
        self,
        step: Any,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        rule: AttentionRule,
    ) -> torch.Tensor:
        """Give `[T, H, E]`; K and V of this step already stand in the pools `[blocks, block_size, K, D or E]`."""
        ...
