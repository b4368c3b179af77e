"""Stand-ins for the kernels of a GPU: one computes in plain torch on any device, one gives shapes alone."""

# T tokens, H query heads, K key/value heads, D key width, E value width

from typing import Any

import pytest
import torch
from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.attention.kv_write import write_plainly
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.sampling import noise
from textmill_shard.sampling.row_scan import TorchRowScanner
from textmill_shard.triton_kernels.interface import (
    Activation,
    DeviceKernels,
    ExpertOrder,
    LowRankTable,
    PagedIndices,
    TileMap,
)
from textmill_shard.triton_kernels.paged_backend import PagedAttention
from textmill_shard.triton_kernels.plain_layers import (
    add_low_rank_plainly,
    add_rms_norm_plainly,
    expert_product_plainly,
    gate_up_plainly,
    rms_norm_plainly,
)
from textmill_shard.triton_kernels.plain_rows import unpack_rows_plainly
from textmill_shard.triton_kernels.tile_map import plan_tiles_plainly
from textmill_shard.triton_kernels.tiles import Tile, count_further, count_tiles

H100_MULTIPROCESSORS = 132


def further_parts(tile: Tile, *, group: int, num_kv_heads: int, num_tokens: int, num_sequences: int) -> int:
    """Return the further parts of contexts that stand ready on an H100."""
    num_tiles = count_tiles(tile, group=group, num_tokens=num_tokens, num_sequences=num_sequences)
    return count_further(num_tiles=num_tiles, num_kv_heads=num_kv_heads, num_multiprocessors=H100_MULTIPROCESSORS)


class PlainKernels:
    """Implements `DeviceKernels` by the plain torch that each kernel must agree with."""

    def __init__(self, capability: tuple[int, int] = (8, 0)) -> None:
        self.capability = capability

    def unpack_rows(
        self,
        packed: torch.Tensor,
        last_ids_S: torch.Tensor,
        batch: ForwardBatch,
        *,
        scratch_block: int,
        block_size: int,
    ) -> None:
        unpack_rows_plainly(packed, last_ids_S, batch, scratch_block=scratch_block, block_size=block_size)

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
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        return write_plainly(query_THD, key_TKD, value_TKE, key_pool, value_pool, places_T, tables, scales)

    def plan_tiles(
        self,
        query_starts: torch.Tensor,
        context_lens_R: torch.Tensor,
        tile: Tile,
        *,
        group: int,
        num_kv_heads: int,
        num_tokens: int,
    ) -> TileMap:
        num_further = further_parts(
            tile, group=group, num_kv_heads=num_kv_heads, num_tokens=num_tokens, num_sequences=len(context_lens_R)
        )
        return plan_tiles_plainly(
            query_starts, context_lens_R, tile, group=group, num_tokens=num_tokens, num_further=num_further
        )

    def attention(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        indices: PagedIndices,
        tiles: TileMap,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        num_tokens = query_THD.shape[0]
        nothing = torch.zeros(num_tokens, dtype=torch.int64)
        batch = ForwardBatch(
            input_ids_T=nothing,
            position_ids_T=nothing,
            kv_places_T=nothing,
            query_starts=indices.query_starts,
            context_lens_R=indices.context_lens_R,
            block_tables_RB=indices.block_tables_RB,
            logit_rows_N=nothing,
            max_query_len=num_tokens,
            max_context_len=int(indices.context_lens_R.max()),
            span_ends_T=indices.span_ends_T,
        )
        step = ReferenceAttention().prepare(batch, block_size=key_pool.shape[1])
        return step.attend(query_THD, key_pool, value_pool, rule, scales)

    def rms_norm(self, x: torch.Tensor, factor_I: torch.Tensor, epsilon: float) -> torch.Tensor:
        return rms_norm_plainly(x, factor_I, epsilon)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, factor_I: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_rms_norm_plainly(x, residual, factor_I, epsilon)

    def gate_up(self, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
        return gate_up_plainly(gate_TI, up_TI, activation)

    def add_low_rank(
        self,
        out_TO: torch.Tensor,
        x_TI: torch.Tensor,
        table: LowRankTable,
        places_T: torch.Tensor,
        *,
        max_rank: int,
        is_decode: bool,
    ) -> None:
        add_low_rank_plainly(out_TO, x_TI, table, places_T)

    def expert_product(
        self,
        x_NI: torch.Tensor,
        weights: torch.Tensor,
        biases_EO: torch.Tensor | None,
        order: ExpertOrder,
        *,
        has_inputs_first: bool,
    ) -> torch.Tensor:
        return expert_product_plainly(x_NI, weights, biases_EO, order, has_inputs_first=has_inputs_first)

    def gumbel(self, seed_words_S2: torch.Tensor, positions_S: torch.Tensor, ids_SC: torch.Tensor) -> torch.Tensor:
        return noise.gumbel(seed_words_S2, positions_S, ids_SC)

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        return TorchRowScanner().first_pass(logits_NV, changes, num_candidates)


def load_by(monkeypatch: pytest.MonkeyPatch, kernels: DeviceKernels) -> None:
    """Let models that are loaded from now on take these kernels, as models on a GPU take the kernels of the GPU."""

    def choose(*_: Any, **__: Any) -> PagedAttention:
        return PagedAttention(kernels)

    monkeypatch.setattr("textmill_shard.loader.model_loader.choose_attention", choose)


class Switch:
    """Passes each call on to other kernels, which may be exchanged."""

    def __init__(self, chosen: DeviceKernels) -> None:
        self.chosen = chosen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.chosen, name)
