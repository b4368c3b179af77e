"""Launches the Triton kernels. A variant is what the compiler makes of a kernel for one set of constants."""

# T tokens, H query heads, K key/value heads, D key width, E value width, I width of a norm or an MLP,
# N rows of scores, V vocabulary; of experts: N rows, P pairs, E experts, I inputs, O outputs

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.model.forward_batch import ForwardBatch, RowScan
from textmill_shard.model.kv_scales import KvScales, largest_number
from textmill_shard.model.score_changes import (
    BiasChange,
    CountChange,
    FirstPass,
    IdLists,
    MaskChange,
    RepetitionChange,
    ScoreChanges,
)
from textmill_shard.triton_kernels.constants import (
    COMPILE_OPTIONS,
    LIST_ENTRIES,
    NOISE_IDS,
    SCAN_IDS,
    attention_constants,
    expand_constants,
    expert_constants,
    gate_constants,
    merge_constants,
    norm_constants,
    plan_constants,
    scan_constants,
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
from textmill_shard.triton_kernels.device.row_scan import merge_parts, scan_parts
from textmill_shard.triton_kernels.device.unpack_rows import unpack_rows
from textmill_shard.triton_kernels.interface import Activation, ExpertOrder, LowRankTable, PagedIndices, TileMap
from textmill_shard.triton_kernels.part_candidates import best_of_parts
from textmill_shard.triton_kernels.tiles import (
    Tile,
    count_further,
    count_tiles,
    least_part,
    low_rank_tile,
    num_expert_tiles,
    power_of_two,
)

LEAST_ABSENT_ROWS = 64  # for which "no row asks" is written at first


class TritonKernels:
    """The kernels of one GPU, or of Triton's interpreter on a CPU. Implements `DeviceKernels`."""

    def __init__(self, *, num_multiprocessors: int, capability: tuple[int, int]) -> None:
        self._num_multiprocessors = num_multiprocessors
        self._asked_by_nobody: _Changes | None = None  # made at the first pass that changes scores
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
        _launch(
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
            largest_stored=None if scales is None else largest_number(key_pool.dtype),
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
        _launch(
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
        query_THD = _dense_rows(query_THD)
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
        _launch(
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
            _launch(
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
        rows = _two_strides(x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = None if residual is None else torch.empty_like(out)
        constants, num_warps = norm_constants(width=x.shape[-1], has_residual=residual is not None)
        num_rows = out.numel() // x.shape[-1]
        _launch(
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
        gate_TI, up_TI = _dense_rows(gate_TI), _dense_rows(up_TI)
        num_tokens, width = gate_TI.shape
        out_TI = torch.empty(num_tokens, width, dtype=gate_TI.dtype, device=gate_TI.device)
        constants = gate_constants(width=width, activation=activation)
        _launch(
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
        x_TI = _dense_rows(x_TI)
        assert out_TO.stride(-1) == 1, out_TO.stride()
        assert out_TO.dtype == x_TI.dtype, (out_TO.dtype, x_TI.dtype)
        num_rows, num_inputs = x_TI.shape
        tile = low_rank_tile(max_rank=max_rank, is_decode=is_decode)
        z_TZ = torch.empty(num_rows, tile.width, dtype=x_TI.dtype, device=x_TI.device)
        num_tiles = -(-num_rows // tile.rows)
        _launch(
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
        _launch(
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
        x_NI = _dense_rows(x_NI)
        assert weights.is_contiguous(), weights.stride()
        assert weights.dtype == x_NI.dtype, (weights.dtype, x_NI.dtype)
        num_experts, num_outputs, num_inputs = weights.shape
        if has_inputs_first:
            num_outputs, num_inputs = num_inputs, num_outputs
        num_pairs = len(order.pairs_P)
        out_PO = torch.empty(num_pairs, num_outputs, dtype=x_NI.dtype, device=x_NI.device)
        tile = order.tile
        num_tiles = num_expert_tiles(rows=tile.rows, num_pairs=num_pairs, num_experts=num_experts)
        _launch(
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
        ids_SC = _dense_rows(ids_SC)
        num_rows, num_ids = ids_SC.shape
        noise_SC = torch.empty(num_rows, num_ids, dtype=torch.float64, device=ids_SC.device)
        _launch(
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
        logits_NV = _dense_rows(logits_NV)
        num_rows, vocab_size = logits_NV.shape
        device = logits_NV.device
        num_parts = -(-vocab_size // SCAN_IDS)
        scores_NV = None
        if changes.changes_scores:
            scores_NV = torch.empty(num_rows, vocab_size, dtype=torch.float32, device=device)
        # Each in memory of its own: the parts of one tensor have other alignments for other numbers of rows, for which
        # the compiler would make further variants.
        best_scores, tempered_sums, *of_logits = (
            torch.empty(num_rows, num_parts, dtype=torch.float32, device=device) for _ in range(5)
        )
        best_ids = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
        keys_NPC = None
        if 0 < num_candidates <= SCAN_IDS:
            keys_NPC = torch.empty(num_rows, num_parts, num_candidates, dtype=torch.int64, device=device)
        heat = changes.temperatures
        heat_tensors = (None, None) if heat is None else (heat.slots_N, heat.temperatures_S)
        lists, strides = self._change_arguments(changes, num_rows, device)
        _launch(
            scan_parts,
            (num_rows, num_parts),
            logits_NV,
            scores_NV,
            best_scores,
            best_ids,
            None if heat is None else tempered_sums,
            *of_logits,
            keys_NPC,
            *lists,
            *heat_tensors,
            logits_NV.stride(0),
            vocab_size,
            *strides,
            num_candidates,
            constants=scan_constants(
                has_changes=changes.changes_scores,
                has_temperature=heat is not None,
                has_candidates=keys_NPC is not None,
            ),
            num_warps=4,
        )
        best_N = torch.empty(num_rows, dtype=torch.int64, device=device)
        not_finite_N = torch.empty(num_rows, dtype=torch.bool, device=device)
        log_mass_N, tempered_mass_N = (torch.empty(num_rows, dtype=torch.float32, device=device) for _ in range(2))
        _launch(
            merge_parts,
            (num_rows,),
            best_scores,
            best_ids,
            None if heat is None else tempered_sums,
            *of_logits,
            best_N,
            not_finite_N,
            log_mass_N,
            None if heat is None else tempered_mass_N,
            *heat_tensors,
            num_parts,
            constants={"PARTS": power_of_two(num_parts), "HAS_TEMPERATURE": heat is not None},
            num_warps=1,
        )
        return FirstPass(
            scores_NV=logits_NV if scores_NV is None else scores_NV,
            scan=RowScan(best_N=best_N, not_finite_N=not_finite_N, log_mass_N=log_mass_N),
            best_N=best_N,
            tempered_mass_N=None if heat is None else tempered_mass_N,
            candidates_NC=None if keys_NPC is None else best_of_parts(keys_NPC),
        )

    def _change_arguments(
        self, changes: ScoreChanges, num_rows: int, device: torch.device
    ) -> tuple[Sequence[torch.Tensor | None], Sequence[int]]:
        """Return the tensors of the changes of scores, in the order of `scan_parts`, and their strides."""
        if not changes.changes_scores:
            return (None,) * 16, (0,) * 5
        if self._asked_by_nobody is None or len(self._asked_by_nobody.repetition.slots_N) < num_rows:
            self._asked_by_nobody = _asked_by_nobody(max(LEAST_ABSENT_ROWS, power_of_two(num_rows)), device)
        nobody = self._asked_by_nobody
        seen, counts = changes.repetition or nobody.repetition, changes.counts or nobody.counts
        bias, mask = changes.bias or nobody.bias, changes.mask or nobody.mask
        tensors = (
            *(seen.slots_N, seen.lists.ids_SE, seen.lists.num_ids_S, seen.penalties_S),
            *(counts.slots_N, counts.lists.ids_SE, counts.lists.num_ids_S),
            *(counts.counts_SE, counts.presence_S, counts.frequency_S),
            *(bias.slots_N, bias.lists.ids_SE, bias.lists.num_ids_S, bias.amounts_SE),
            *(mask.slots_N, mask.forbidden_SV),
        )
        wide = (seen.lists.ids_SE, counts.lists.ids_SE, counts.counts_SE, bias.lists.ids_SE, bias.amounts_SE)
        return tensors, tuple(tensor.stride(0) for tensor in wide)


@dataclass(frozen=True, slots=True)
class _Changes:
    """All changes of scores."""

    repetition: RepetitionChange
    counts: CountChange
    bias: BiasChange
    mask: MaskChange


def _asked_by_nobody(num_rows: int, device: torch.device) -> _Changes:
    """Return changes for which no row asks. The kernel reads the first entry of their tensors at most."""
    nobody_N = torch.full((num_rows,), -1, dtype=torch.int64, device=device)
    ids_SE = torch.zeros(1, LIST_ENTRIES, dtype=torch.int64, device=device)
    numbers_SE = torch.zeros(1, LIST_ENTRIES, dtype=torch.float32, device=device)
    lists, numbers_S = IdLists(ids_SE, ids_SE[0]), numbers_SE[0]
    return _Changes(
        RepetitionChange(nobody_N, lists, numbers_S),
        CountChange(nobody_N, lists, numbers_SE, numbers_S, numbers_S),
        BiasChange(nobody_N, lists, numbers_SE),
        MaskChange(nobody_N, torch.zeros(1, LIST_ENTRIES, dtype=torch.bool, device=device)),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a tensor: row n lies at n // num_inner outer strides and n % num_inner inner strides."""

    tensor: torch.Tensor
    num_inner: int
    outer_stride: int
    inner_stride: int


def _two_strides(x: torch.Tensor) -> _Rows:
    """Return the rows of `[..., I]` where two strides tell where they lie, else those of a copy."""
    dims = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    merged: list[tuple[int, int]] = []
    for size, stride in dims:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = merged[-1][0] * size, stride
        else:
            merged.append((size, stride))
    if x.stride(-1) != 1 or len(merged) > 2:
        return _Rows(x.contiguous(), num_inner=1, outer_stride=x.shape[-1], inner_stride=0)
    if len(merged) < 2:
        return _Rows(x, num_inner=1, outer_stride=merged[0][1] if merged else 0, inner_stride=0)
    return _Rows(x, num_inner=merged[1][0], outer_stride=merged[0][1], inner_stride=merged[1][1])


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int = 1,  # as in the table of variants; the compiler's own choice is 3
) -> None:
    kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages, **COMPILE_OPTIONS)


def _dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with neighbours of the last dim side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
