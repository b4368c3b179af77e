"""The attention backend of a GPU: one launch per layer for any mix of decode rows and prefill chunks."""

# T tokens of the step, H query heads, K key/value heads, D key width, E value width

from dataclasses import dataclass, field, replace

import torch

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.errors import BackendRefused
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.triton_kernels.interface import DeviceKernels, PagedIndices, TileMap
from textmill_shard.triton_kernels.tiles import Tile, attention_tile

MAX_HEAD_DIM = 256  # wider heads do not fit the shared memory of a multiprocessor


@dataclass(frozen=True, slots=True)
class PagedStep:
    """The indices of one step, and the maps of its tiles, which layers of equal sizes share."""

    kernels: DeviceKernels
    indices: PagedIndices
    kv_places_T: torch.Tensor  # int64
    max_query_len: int
    # By tile, query heads per key head, and key heads.
    tile_maps: dict[tuple[Tile, int, int], TileMap] = field(default_factory=dict)

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
        return self.kernels.write_kv(
            query_THD,
            key_TKD,
            value_TKE,
            key_pool,
            value_pool,
            places_T=self.kv_places_T,
            tables=tables,
            scales=scales,
        )

    def attend(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        num_kv_heads = key_pool.shape[2]
        group = query_THD.shape[1] // num_kv_heads
        tile = attention_tile(
            itemsize=query_THD.dtype.itemsize,
            group=group,
            key_dim=key_pool.shape[3],
            value_dim=value_pool.shape[3],
            max_query_len=self.max_query_len,
            has_8_bits=scales is not None,
        )
        tiles = self.tile_maps.get((tile, group, num_kv_heads))
        if tiles is None:
            tiles = self.kernels.plan_tiles(
                self.indices.query_starts,
                self.indices.context_lens_R,
                tile,
                group=group,
                num_kv_heads=num_kv_heads,
                num_tokens=query_THD.shape[0],
            )
            self.tile_maps[tile, group, num_kv_heads] = tiles
        if scales is None:
            query_THD = query_THD.to(key_pool.dtype)
        return self.kernels.attention(query_THD, key_pool, value_pool, self.indices, tiles, rule, scales)


class PagedAttention:
    """The backend for pools on a GPU. Rows beyond the last sequence come out as zeros."""

    name = "triton"

    def __init__(self, kernels: DeviceKernels) -> None:
        self.kernels = kernels

    def accept(self, rule: AttentionRule, spec: LayerKvSpec) -> AttentionRule:
        if max(spec.key_dim, spec.value_dim) > MAX_HEAD_DIM:
            raise BackendRefused(
                f"--attention-backend triton computes heads of at most {MAX_HEAD_DIM} dims, and a layer of this model "
                f"has {max(spec.key_dim, spec.value_dim)}: --attention-backend reference"
            )
        return replace(rule, sinks_H=_vector(rule.sinks_H), slopes_H=_vector(rule.slopes_H))

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> PagedStep:
        return PagedStep(
            kernels=self.kernels,
            indices=PagedIndices(batch.query_starts, batch.context_lens_R, batch.block_tables_RB, batch.span_ends_T),
            kv_places_T=batch.kv_places_T,
            max_query_len=batch.max_query_len,
        )


def _vector(numbers_H: torch.Tensor | None) -> torch.Tensor | None:
    """Return numbers of heads as the kernels read them."""
    return None if numbers_H is None else numbers_H.detach().float().contiguous()
