"""Paged attention by the native kernel, which reads keys and values where they stand in the pool.

One call per layer takes any mix of decode rows and prefill chunks.
"""

# T tokens, H query heads, D key width, E value width

from dataclasses import dataclass, replace

import torch

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.attention.kv_write import write_plainly
from textmill_shard.errors import BackendRefused
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.native.kernels import Kernels


@dataclass(frozen=True, slots=True)
class CpuStep:
    """The int32 tensors of one batch, contiguous as the kernel reads them."""

    kernels: Kernels
    block_tables_RB: torch.Tensor
    query_starts: torch.Tensor
    context_lens_R: torch.Tensor
    kv_places_T: torch.Tensor  # int64
    span_ends_T: torch.Tensor | None  # None: the step has no span

    def write(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        tables: RotaryTables | None,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        return write_plainly(query_THD, key_TKD, value_TKE, key_pool, value_pool, self.kv_places_T, tables)

    def attend(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        assert scales is None, "the native kernel reads no numbers of 8 bits"
        out_THE = self.kernels.attention(
            query_THD.to(key_pool.dtype),
            key_pool,
            value_pool,
            block_tables_RB=self.block_tables_RB,
            query_starts=self.query_starts,
            context_lens_R=self.context_lens_R,
            scaling=rule.scaling,
            window_tokens=rule.window_tokens,
            chunk_tokens=rule.chunk_tokens,
            softcap=rule.softcap,
            sinks_H=rule.sinks_H,
            span_ends_T=self.span_ends_T if rule.sees_spans else None,
        )
        return out_THE.to(query_THD.dtype)


class CpuAttention:
    """The backend for bfloat16 and float32 pools on a CPU. Rows beyond the last sequence come out as zeros."""

    name = "cpu"

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def accept(self, rule: AttentionRule, spec: LayerKvSpec) -> AttentionRule:
        if rule.slopes_H is not None:
            raise BackendRefused("the native attention knows no slopes (ALiBi): --attention-backend reference")
        return replace(rule, sinks_H=None if rule.sinks_H is None else rule.sinks_H.detach().float().contiguous())

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> CpuStep:
        return CpuStep(
            kernels=self._kernels,
            block_tables_RB=batch.block_tables_RB.contiguous(),
            query_starts=batch.query_starts.contiguous(),
            context_lens_R=batch.context_lens_R.contiguous(),
            kv_places_T=batch.kv_places_T,
            span_ends_T=None if batch.span_ends_T is None else batch.span_ends_T.contiguous(),
        )
