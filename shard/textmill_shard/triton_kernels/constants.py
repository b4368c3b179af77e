"""The constants of each kernel, for which the compiler makes machine code, shared by launches and the table.

This file imports no triton.
"""

from typing import Any

from textmill_shard.model.decode_rows import FED, FIELDS, HEADER
from textmill_shard.triton_kernels.interface import Activation
from textmill_shard.triton_kernels.tiles import ExpertTile, LowRankTile, Tile, power_of_two

# Fusing a product and a sum into one operation rounds once, and is Triton's choice up to version 3.9.
COMPILE_OPTIONS = {"enable_fp_fusion": True}
SCAN_IDS = 4096  # scores of a part of a row
NOISE_IDS = 256  # ids of a program that makes noise
LIST_ENTRIES = 512  # entries of a list of ids that a program reads at a time
GATE_TILE = 1024  # elements of a program of the gate
MERGED_ROWS = 4  # rows of a tile whose parts a program puts together
MERGED_NUMBERS = 4096  # of the parts that are read at a time
PLANNED_SEQUENCES = 128  # whose tiles are planned at a time
COPIED_BLOCKS = 128  # entries of a block table that a program copies at a time


def attention_constants(
    *,
    group: int,
    key_dim: int,
    value_dim: int,
    block_size: int,
    tile: Tile,
    has_window: bool,
    has_chunk: bool,
    has_softcap: bool,
    has_sinks: bool,
    has_slopes: bool,
    has_spans: bool,
    is_split: bool,
    has_scales: bool,
) -> dict[str, Any]:
    """Return the constants of `paged_attention`."""
    return {
        "GROUP": group,
        "KEY_DIM": key_dim,
        "VALUE_DIM": value_dim,
        "KEY_WIDTH": _width(key_dim),
        "VALUE_WIDTH": _width(value_dim),
        "BLOCK_SIZE": block_size,
        "ROWS": tile.rows,
        "PLACES": tile.places,
        "HAS_WINDOW": has_window,
        "HAS_CHUNK": has_chunk,
        "HAS_SOFTCAP": has_softcap,
        "HAS_SINKS": has_sinks,
        "HAS_SLOPES": has_slopes,
        "HAS_SPANS": has_spans,
        "IS_SPLIT": is_split,
        "HAS_SCALES": has_scales,
    }


def plan_constants(tile: Tile, *, group: int) -> dict[str, Any]:
    """Return the constants of `plan_tiles`."""
    return {"QUERIES": tile.num_queries(group), "SEQUENCES": PLANNED_SEQUENCES}


def merge_constants(*, group: int, value_dim: int, tile: Tile) -> dict[str, Any]:
    """Return the constants of `merge_splits`."""
    width = _width(value_dim)
    return {
        "GROUP": group,
        "VALUE_DIM": value_dim,
        "VALUE_WIDTH": width,
        "ROWS": tile.rows,
        "MERGED_ROWS": MERGED_ROWS,
        "PARTS": max(4, MERGED_NUMBERS // (MERGED_ROWS * width)),
    }


def write_constants(
    *,
    group: int,
    key_dim: int,
    value_dim: int,
    rotary_dim: int,
    is_interleaved: bool,
    largest_stored: float | None,
) -> dict[str, Any]:
    """Return the constants of `write_kv`. `largest_stored` is the largest number of 8 bits, None without scales."""
    return {
        "GROUP": group,
        "GROUP_WIDTH": power_of_two(group),
        "KEY_DIM": key_dim,
        "VALUE_DIM": value_dim,
        "KEY_WIDTH": _width(key_dim),
        "VALUE_WIDTH": _width(value_dim),
        "ROTARY_DIM": rotary_dim,
        "IS_INTERLEAVED": is_interleaved,
        "LARGEST_STORED": largest_stored or 0.0,
    }


def norm_constants(*, width: int, has_residual: bool) -> tuple[dict[str, Any], int]:
    """Return the constants of `rms_norm`, and the number of warps."""
    full = power_of_two(width)
    constants = {"WIDTH": width, "FULL_WIDTH": full, "ROWS": max(1, 1024 // full), "HAS_RESIDUAL": has_residual}
    return constants, min(16, max(2, full // 512))


def gate_constants(*, width: int, activation: Activation) -> dict[str, Any]:
    """Return the constants of `gate_up`."""
    return {"WIDTH": width, "TILE": GATE_TILE, "ACTIVATION": activation}


def scan_constants(*, has_changes: bool, has_temperature: bool, has_candidates: bool) -> dict[str, Any]:
    """Return the constants of `scan_parts`."""
    return {
        "IDS": SCAN_IDS,
        "ENTRIES": LIST_ENTRIES,
        "HAS_CHANGES": has_changes,
        "HAS_TEMPERATURE": has_temperature,
        "HAS_CANDIDATES": has_candidates,
    }


def shrink_constants(tile: LowRankTile, *, num_inputs: int) -> dict[str, Any]:
    """Return the constants of `shrink`."""
    return {
        "INNER": num_inputs,
        "INNER_TILE": tile.inputs,
        "STAGES": tile.num_stages,
        "ROWS": tile.rows,
        "RANK_TILE": tile.ranks,
        "Z_WIDTH": tile.width,
    }


def expand_constants(tile: LowRankTile, *, num_outputs: int) -> dict[str, Any]:
    """Return the constants of `expand`."""
    return {
        "OUTPUTS": num_outputs,
        "OUT_TILE": tile.outputs,
        "ROWS": tile.rows,
        "RANK_TILE": tile.ranks,
        "Z_WIDTH": tile.width,
    }


def expert_constants(
    tile: ExpertTile,
    *,
    num_experts: int,
    num_inputs: int,
    num_outputs: int,
    pairs_of_row: int,
    has_inputs_first: bool,
) -> dict[str, Any]:
    """Return the constants of `expert_product`."""
    return {
        "EXPERTS": num_experts,
        "EXPERTS_WIDTH": power_of_two(num_experts),
        "INNER": num_inputs,
        "OUTPUTS": num_outputs,
        "PAIRS_OF_ROW": pairs_of_row,
        "INPUTS_FIRST": has_inputs_first,
        "ROWS": tile.rows,
        "OUT_TILE": tile.outputs,
        "INNER_TILE": tile.inputs,
    }


def unpack_constants(*, block_size: int) -> dict[str, Any]:
    """Return the constants of `unpack_rows`."""
    return {
        "HEADER": HEADER,
        "NUM_FIELDS": len(FIELDS),
        "FED": FED,
        "BLOCK_SIZE": block_size,
        "TILE": COPIED_BLOCKS,
    }


def _width(dim: int) -> int:
    """Return the elements that a kernel reads for a dim: a power of two, and enough for a product of tensor cores."""
    return max(16, power_of_two(dim))
