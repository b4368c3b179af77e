"""The protocol of an attention backend, which makes of each step an object that attends layer by layer."""

# T tokens of the step, H local query heads, K local key/value heads, D key width, E value width

from dataclasses import dataclass
from typing import Protocol

import torch

from textmill_shard.model.forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How one layer attends. A rule is fixed when the model is built."""

    scaling: float
    window_tokens: int | None = None  # number of keys that a token sees, its own included; None = all
    chunk_tokens: int | None = None  # a token sees only keys of its own chunk of this many tokens; None = no chunks
    softcap: float | None = None  # a score becomes softcap * tanh(score / softcap)
    sinks_H: torch.Tensor | None = None  # one score per head, which takes a share of the weights and adds no value


class AttentionStep(Protocol):
    """The indices of one step, made by a backend from the batch; every layer of the step attends with them."""

    def attend(
        self, query_THD: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """Return the attended values `[T, H, E]` of one layer.

        The keys and values of this step already stand in the pools `[blocks, block_size, K, D or E]`.
        """
        ...


class AttentionBackend(Protocol):
    """Computes attention over the block tables of a batch. A layout chooses its backend when the layout is built."""

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> AttentionStep:
        """Return the indices of one step. Called once per step, before the first layer; `block_size` counts tokens."""
        ...
