"""Launches the Triton kernels. A variant is what the compiler makes of a kernel for one set of constants."""

# T tokens, H query heads, K key/value heads, D key width, E value width, S splits

from typing import Any

import torch

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.triton_kernels.device.attention import merge_splits, paged_attention
from textmill_shard.triton_kernels.device.kv_write import write_kv
from textmill_shard.triton_kernels.interface import PagedIndices, TileMap
from textmill_shard.triton_kernels.tiles import num_splits
from textmill_shard.triton_kernels.variants import (
    COMPILE_OPTIONS,
    attention_constants,
    merge_constants,
    write_constants,
)


class TritonKernels:
    """The kernels of one GPU, or of Triton's interpreter on a CPU. Implements `DeviceKernels`."""

    def __init__(self, *, num_multiprocessors: int) -> None:
        self._num_multiprocessors = num_multiprocessors

    def write_kv(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        *,
        places_T: torch.Tensor,
        tables: RotaryTables | None,
    ) -> torch.Tensor:
        query_THD, key_TKD, value_TKE = _dense_rows(query_THD), _dense_rows(key_TKD), _dense_rows(value_TKE)
        num_tokens, num_kv_heads, key_dim = key_TKD.shape
        group = query_THD.shape[1] // num_kv_heads
        cosines_TP, sines_TP, turned_THD = None, None, None
        if tables is not None:
            cosines_TP, sines_TP = _dense_rows(tables.cosines_TP), _dense_rows(tables.sines_TP)
            assert cosines_TP.stride(0) == sines_TP.stride(0), "both tables are read with one stride"
            turned_THD = torch.empty(query_THD.shape, dtype=query_THD.dtype, device=query_THD.device)
        constants = write_constants(
            group=group,
            key_dim=key_dim,
            value_dim=value_TKE.shape[2],
            rotary_dim=0 if cosines_TP is None else cosines_TP.shape[1],
            is_interleaved=tables is not None and tables.is_interleaved,
        )
        _launch(
            write_kv,
            (num_tokens, num_kv_heads),
            query_THD,
            key_TKD,
            value_TKE,
            turned_THD,
            key_pool,
            value_pool,
            places_T,
            cosines_TP,
            sines_TP,
            *query_THD.stride()[:2],
            *key_TKD.stride()[:2],
            *value_TKE.stride()[:2],
            0 if cosines_TP is None else cosines_TP.stride(0),
            constants=constants,
            num_warps=1,
        )
        return query_THD if turned_THD is None else turned_THD

    def attention(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        indices: PagedIndices,
        tiles: TileMap,
        rule: AttentionRule,
    ) -> torch.Tensor:
        query_THD = _dense_rows(query_THD)
        num_tokens, num_heads, key_dim = query_THD.shape
        _, block_size, num_kv_heads, value_dim = value_pool.shape
        device, tile = query_THD.device, tiles.tile
        splits = num_splits(
            num_tiles=min(len(tiles.sequences), num_tokens),
            num_kv_heads=num_kv_heads,
            num_multiprocessors=self._num_multiprocessors,
        )
        out_THE = torch.empty(num_tokens, num_heads, value_dim, dtype=query_THD.dtype, device=device)
        parts, maxima_THS, sums_THS = out_THE, None, None
        if splits > 1:
            parts = torch.empty(num_tokens, num_heads, splits, value_dim, dtype=torch.float32, device=device)
            maxima_THS, sums_THS = torch.empty(
                2, num_tokens, num_heads, splits, dtype=torch.float32, device=device
            ).unbind()
        _launch(
            paged_attention,
            (len(tiles.sequences), num_kv_heads, splits),
            query_THD,
            key_pool,
            value_pool,
            parts,
            maxima_THS,
            sums_THS,
            tiles.sequences,
            indices.query_starts,
            indices.context_lens_R,
            indices.block_tables_RB,
            rule.sinks_H,
            rule.slopes_H,
            rule.scaling,
            rule.softcap or 0.0,
            rule.window_tokens or 0,
            rule.chunk_tokens or 0,
            len(indices.context_lens_R),
            num_tokens,
            *query_THD.stride()[:2],
            indices.block_tables_RB.stride(0),
            constants=attention_constants(
                group=num_heads // num_kv_heads,
                key_dim=key_dim,
                value_dim=value_dim,
                block_size=block_size,
                tile=tile,
                has_window=rule.window_tokens is not None,
                has_chunk=rule.chunk_tokens is not None,
                has_softcap=rule.softcap is not None,
                has_sinks=rule.sinks_H is not None,
                has_slopes=rule.slopes_H is not None,
                is_split=splits > 1,
            ),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        if splits > 1:
            _launch(
                merge_splits,
                (num_tokens * num_heads,),
                parts,
                maxima_THS,
                sums_THS,
                out_THE,
                constants=merge_constants(value_dim=value_dim, splits=splits),
                num_warps=4,
            )
        return out_THE


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, constants: dict[str, Any], **options: Any) -> None:
    kernel[grid](*arguments, **constants, **options, **COMPILE_OPTIONS)


def _dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with neighbours of the last dim side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
