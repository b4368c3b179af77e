"""The protocol of an attention backend, which makes of each step an object that attends layer by layer."""

# T tokens of the step, H local query heads, K local key/value heads, D key width, E value width, P rotary width

from dataclasses import dataclass
from typing import Protocol

import torch

from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KvScales


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How one layer attends. A rule is fixed when the model is built."""

    scaling: float
    window_tokens: int | None = None  # number of keys that a token sees, its own included; None = all
    chunk_tokens: int | None = None  # a token sees only keys of its own chunk of this many tokens; None = no chunks
    softcap: float | None = None  # a score becomes softcap * tanh(score / softcap)
    sinks_H: torch.Tensor | None = None  # one score per head, which takes a share of the weights and adds no value
    sees_spans: bool = False  # the tokens of an image see each other (`span_ends_T` of the batch)
    slopes_H: torch.Tensor | None = None  # a score loses slope * distance in tokens (ALiBi, Press et al., 2022)


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """The cosines and sines by which the first P dims of the queries and keys of a step turn, `[T, P]` each."""

    cosines_TP: torch.Tensor
    sines_TP: torch.Tensor
    is_interleaved: bool  # dim 2 i turns with dim 2 i + 1; else dim i turns with dim i + P / 2


class AttentionStep(Protocol):
    """The indices of one step, made by a backend from the batch; every layer of the step attends with them."""

    def write(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        tables: RotaryTables | None,
        scales: KvScales | None,
    ) -> torch.Tensor:
        """Write the step's keys and values to their places in the pools, and return the queries `[T, H, D]`.

        With tables, queries and keys come as they were before their turn, and are turned first. Pools of 8 bits have
        scales.
        """
        ...

    def attend(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        rule: AttentionRule,
        scales: KvScales | None,
    ) -> torch.Tensor:
        """Return the attended values `[T, H, E]` of one layer.

        The keys and values of this step already stand in the pools `[blocks, block_size, K, D or E]`.
        """
        ...


class AttentionBackend(Protocol):
    """Computes attention over the block tables of a batch. The backend is chosen when the model is loaded."""

    name: str  # one of options.ATTENTION_BACKENDS, or "cpu"

    def accept(self, rule: AttentionRule, spec: LayerKvSpec) -> AttentionRule:
        """Return the rule of a layer in the form that `attend` reads. Called once per layer, when the layout is built.

        Raises BackendRefused for a rule or for sizes that the backend does not compute.
        """
        ...

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> AttentionStep:
        """Return the indices of one step. Called once per step, before the first layer; `block_size` counts tokens."""
        ...
