"""Launches the Triton kernels. A variant is what the compiler makes of a kernel for one set of constants."""

# T tokens, H query heads, K key/value heads, D key width, E value width, I width of a norm or an MLP,
# N rows of scores, V vocabulary; of experts: N rows, P pairs, E experts, I inputs, O outputs

import torch

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_scales import KvScales, largest_number
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.triton_kernels import launching
from textmill_shard.triton_kernels.constants import (
    NOISE_IDS,
    attention_constants,
    expand_constants,
    expert_constants,
    gate_constants,
    merge_constants,
    norm_constants,
    plan_constants,
    shrink_constants,
    unpack_constants,
    write_constants,
)
from textmill_shard.triton_kernels.device.attention import merge_splits, paged_attention
from textmill_shard.triton_kernels.device.experts import expert_product
from textmill_shard.triton_kernels.device.gate import gate_up
from textmill_shard.triton_kernels.device.kv_write import write_kv
from textmill_shard.triton_kernels.device.low_rank import expand, shrink
from textmill_shard.triton_kernels.device.noise import gumbel
from textmill_shard.triton_kernels.device.norm import rms_norm
from textmill_shard.triton_kernels.device.plan_tiles import plan_tiles
from textmill_shard.triton_kernels.device.unpack_rows import unpack_rows
from textmill_shard.triton_kernels.interface import Activation, ExpertOrder, LowRankTable, PagedIndices, TileMap
from textmill_shard.triton_kernels.score_scan import ScoreScan
from textmill_shard.triton_kernels.strided_rows import dense_rows, two_strides
from textmill_shard.triton_kernels.tiles import (
    Tile,
    count_further,
    count_tiles,
    least_part,
    low_rank_tile,
    num_expert_tiles,
)


class TritonKernels:
    """The kernels of one GPU, or of Triton's interpreter on a CPU. Implements `DeviceKernels`."""

    def __init__(self, *, num_multiprocessors: int, capability: tuple[int, int]) -> None:
        self._num_multiprocessors = num_multiprocessors
        self._scan = ScoreScan()
        self._capability = capability

    @property
    def capability(self) -> tuple[int, int]:
        return self._capability

    def unpack_rows(
        self,
        packed: torch.Tensor,
        last_ids_S: torch.Tensor,
        batch: ForwardBatch,
        *,
        scratch_block: int,
        block_size: int,
    ) -> None:
        assert batch.slots_R is not None
        rope = batch.rope_positions_3T
        launching.launch(
            unpack_rows,
            (len(batch.context_lens_R),),
            packed,
            last_ids_S,
            batch.slots_R,
            batch.input_ids_T,
            batch.position_ids_T,
            batch.kv_places_T,
            batch.context_lens_R,
            batch.block_tables_RB,
            batch.adapters_R,
            batch.is_long_rope_T,
            rope,
            batch.block_tables_RB.stride(0),
            0 if rope is None else rope.stride(0),
            scratch_block,
            constants=unpack_constants(block_size=block_size),
            num_warps=1,
        )

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
        query_THD, key_TKD, value_TKE = (
            dense_rows(query_THD),
            dense_rows(key_TKD),
            dense_rows(value_TKE),
        )
        num_tokens, num_kv_heads, key_dim = key_TKD.shape
        group = query_THD.shape[1] // num_kv_heads
        cosines_TP, sines_TP, turned_THD = None, None, None
        if tables is not None:
            cosines_TP, sines_TP = dense_rows(tables.cosines_TP), dense_rows(tables.sines_TP)
            assert cosines_TP.stride(0) == sines_TP.stride(0), "both tables are read with one stride"
            turned_THD = torch.empty(query_THD.shape, dtype=query_THD.dtype, device=query_THD.device)
        constants = write_constants(
            group=group,
            key_dim=key_dim,
            value_dim=value_TKE.shape[2],
            rotary_dim=0 if cosines_TP is None else cosines_TP.shape[1],
            is_interleaved=tables is not None and tables.is_interleaved,
            largest_stored=None if scales is None else largest_number(key_pool.dtype),
        )
        launching.launch(
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
            None if scales is None else scales.keys_K,
            None if scales is None else scales.values_K,
            *query_THD.stride()[:2],
            *key_TKD.stride()[:2],
            *value_TKE.stride()[:2],
            0 if cosines_TP is None else cosines_TP.stride(0),
            constants=constants,
            num_warps=1,
        )
        return query_THD if turned_THD is None else turned_THD

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
        num_sequences = len(context_lens_R)
        num_tiles = count_tiles(tile, group=group, num_tokens=num_tokens, num_sequences=num_sequences)
        num_further = count_further(
            num_tiles=num_tiles, num_kv_heads=num_kv_heads, num_multiprocessors=self._num_multiprocessors
        )
        sequences, parts_before, further_tiles = (
            torch.empty(length, dtype=torch.int32, device=query_starts.device)
            for length in (num_tiles, num_tiles + 1, num_further)
        )
        launching.launch(
            plan_tiles,
            (1,),
            query_starts,
            context_lens_R,
            sequences,
            parts_before,
            further_tiles,
            num_sequences,
            num_tiles,
            num_further,
            least_part(tile),
            constants=plan_constants(tile, group=group),
            num_warps=4,
        )
        return TileMap(tile=tile, sequences=sequences, parts_before=parts_before, further_tiles=further_tiles)

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
        query_THD = dense_rows(query_THD)
        num_tokens, num_heads, key_dim = query_THD.shape
        _, block_size, num_kv_heads, value_dim = value_pool.shape
        device, tile = query_THD.device, tiles.tile
        num_tiles, num_further = len(tiles.sequences), len(tiles.further_tiles)
        out_THE = torch.empty(num_tokens, num_heads, value_dim, dtype=query_THD.dtype, device=device)
        parts, maxima, sums = None, None, None
        if num_further:
            part_rows = (2 * num_further, num_kv_heads, tile.rows)
            parts = torch.empty(*part_rows, value_dim, dtype=torch.float32, device=device)
            maxima, sums = (torch.empty(part_rows, dtype=torch.float32, device=device) for _ in range(2))
        launching.launch(
            paged_attention,
            (num_tiles + num_further, num_kv_heads),
            query_THD,
            key_pool,
            value_pool,
            out_THE,
            parts,
            maxima,
            sums,
            tiles.sequences,
            tiles.parts_before if num_further else None,
            tiles.further_tiles if num_further else None,
            indices.query_starts,
            indices.context_lens_R,
            indices.block_tables_RB,
            rule.sinks_H,
            rule.slopes_H,
            indices.span_ends_T if rule.sees_spans else None,
            None if scales is None else scales.keys_K,
            None if scales is None else scales.values_K,
            rule.scaling,
            rule.softcap or 0.0,
            rule.window_tokens or 0,
            rule.chunk_tokens or 0,
            num_tiles,
            num_further,
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
                has_spans=rule.sees_spans and indices.span_ends_T is not None,
                is_split=num_further > 0,
                has_scales=scales is not None,
            ),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        if num_further:
            constants = merge_constants(group=num_heads // num_kv_heads, value_dim=value_dim, tile=tile)
            launching.launch(
                merge_splits,
                (num_further, num_kv_heads, tile.rows // constants["MERGED_ROWS"]),
                parts,
                maxima,
                sums,
                out_THE,
                tiles.sequences,
                tiles.parts_before,
                tiles.further_tiles,
                indices.query_starts,
                num_tiles,
                num_further,
                len(indices.context_lens_R),
                num_tokens,
                constants=constants,
                num_warps=4,
            )
        return out_THE

    def rms_norm(self, x: torch.Tensor, factor_I: torch.Tensor, epsilon: float) -> torch.Tensor:
        out, _ = self._norm(x, None, factor_I, epsilon)
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, factor_I: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, total = self._norm(x, residual.contiguous(), factor_I, epsilon)
        assert total is not None
        return total, out

    def _norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, factor_I: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the norm, and the sum where there is a residual."""
        rows = two_strides(x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = None if residual is None else torch.empty_like(out)
        constants, num_warps = norm_constants(width=x.shape[-1], has_residual=residual is not None)
        num_rows = out.numel() // x.shape[-1]
        launching.launch(
            rms_norm,
            (-(-num_rows // constants["ROWS"]),),
            rows.tensor,
            residual,
            factor_I,
            out,
            total,
            epsilon,
            num_rows,
            rows.num_inner,
            rows.outer_stride,
            rows.inner_stride,
            constants=constants,
            num_warps=num_warps,
        )
        return out, total

    def gate_up(self, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
        gate_TI, up_TI = dense_rows(gate_TI), dense_rows(up_TI)
        num_tokens, width = gate_TI.shape
        out_TI = torch.empty(num_tokens, width, dtype=gate_TI.dtype, device=gate_TI.device)
        constants = gate_constants(width=width, activation=activation)
        launching.launch(
            gate_up,
            (num_tokens, -(-width // constants["TILE"])),
            gate_TI,
            up_TI,
            out_TI,
            gate_TI.stride(0),
            up_TI.stride(0),
            constants=constants,
            num_warps=4,
        )
        return out_TI

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
        x_TI = dense_rows(x_TI)
        assert out_TO.stride(-1) == 1, out_TO.stride()
        assert out_TO.dtype == x_TI.dtype, (out_TO.dtype, x_TI.dtype)
        num_rows, num_inputs = x_TI.shape
        tile = low_rank_tile(max_rank=max_rank, is_decode=is_decode)
        z_TZ = torch.empty(num_rows, tile.width, dtype=x_TI.dtype, device=x_TI.device)
        num_tiles = -(-num_rows // tile.rows)
        launching.launch(
            shrink,
            (num_tiles, tile.width // tile.ranks),
            x_TI,
            places_T,
            table.a_addresses_P,
            table.ranks_P,
            table.scales_P,
            z_TZ,
            num_rows,
            x_TI.stride(0),
            constants=shrink_constants(tile, num_inputs=num_inputs),
            num_warps=4,
            num_stages=tile.num_stages,
        )
        launching.launch(
            expand,
            (num_tiles, -(-out_TO.shape[1] // tile.outputs)),
            z_TZ,
            places_T,
            table.b_addresses_P,
            table.ranks_P,
            out_TO,
            num_rows,
            out_TO.stride(0),
            constants=expand_constants(tile, num_outputs=out_TO.shape[1]),
            num_warps=4,
            num_stages=tile.num_stages,
        )

    def expert_product(
        self,
        x_NI: torch.Tensor,
        weights: torch.Tensor,
        biases_EO: torch.Tensor | None,
        order: ExpertOrder,
        *,
        has_inputs_first: bool,
    ) -> torch.Tensor:
        x_NI = dense_rows(x_NI)
        assert weights.is_contiguous(), weights.stride()
        assert weights.dtype == x_NI.dtype, (weights.dtype, x_NI.dtype)
        num_experts, num_outputs, num_inputs = weights.shape
        if has_inputs_first:
            num_outputs, num_inputs = num_inputs, num_outputs
        num_pairs = len(order.pairs_P)
        out_PO = torch.empty(num_pairs, num_outputs, dtype=x_NI.dtype, device=x_NI.device)
        tile = order.tile
        num_tiles = num_expert_tiles(rows=tile.rows, num_pairs=num_pairs, num_experts=num_experts)
        launching.launch(
            expert_product,
            (num_tiles, -(-num_outputs // tile.outputs)),
            x_NI,
            weights,
            None if biases_EO is None else biases_EO.contiguous(),
            order.pairs_P,
            order.ends_E,
            out_PO,
            x_NI.stride(0),
            constants=expert_constants(
                tile,
                num_experts=num_experts,
                num_inputs=num_inputs,
                num_outputs=num_outputs,
                pairs_of_row=num_pairs // len(x_NI),
                has_inputs_first=has_inputs_first,
            ),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        return out_PO

    def gumbel(self, seed_words_S2: torch.Tensor, positions_S: torch.Tensor, ids_SC: torch.Tensor) -> torch.Tensor:
        ids_SC = dense_rows(ids_SC)
        num_rows, num_ids = ids_SC.shape
        noise_SC = torch.empty(num_rows, num_ids, dtype=torch.float64, device=ids_SC.device)
        launching.launch(
            gumbel,
            (num_rows, -(-num_ids // NOISE_IDS)),
            seed_words_S2.contiguous(),
            positions_S,
            ids_SC,
            noise_SC,
            num_ids,
            ids_SC.stride(0),
            constants={"IDS": NOISE_IDS},
            num_warps=4,
        )
        return noise_SC

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        return self._scan.first_pass(logits_NV, changes, num_candidates)
