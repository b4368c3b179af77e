"""Compares each variant of the kernels with its plain torch, on the device."""

# T tokens, H query heads, K key/value heads, D key width, E value width

from collections.abc import Iterator

import torch
from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.attention.kv_write import write_plainly
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.model.score_changes import ScoreChanges
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.sampling.row_scan import TorchRowScanner
from textmill_shard.triton_kernels.interface import PagedIndices
from textmill_shard.triton_kernels.kernels import TritonKernels
from textmill_shard.triton_kernels.plain_layers import add_rms_norm_plainly, gate_up_plainly, rms_norm_plainly
from textmill_shard.triton_kernels.tile_map import map_tiles
from textmill_shard.triton_kernels.variants import (
    BLOCK_SIZE,
    VARIANTS,
    AttentionCase,
    GateCase,
    MergeCase,
    NormCase,
    ScanCase,
    Variant,
    WriteCase,
)

from bench.gpu.report import Row
from bench.gpu.setting import Setting

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Largest difference, relative to the largest value: a result is rounded to 8, 11 or 24 bits, and so are weights of
# attention before they meet the values. Products of tensor cores in fp32 are not used.
TOLERANCE = {"bf16": 2e-2, "fp16": 3e-3, "fp32": 1e-5}
NUM_KV_HEADS = 2
# (tokens before the step, tokens of the step)
DECODES = ((0, 1), (15, 1), (64, 1), (1000, 1), (4999, 1))
CHUNKS = ((0, 200), (130, 33), (1000, 64), (5, 2), (63, 1))
DRY_DECODES, DRY_CHUNKS = ((0, 1), (40, 1)), ((0, 9), (17, 3))


def check_kernels(setting: Setting) -> Iterator[Row]:
    """Yield a row for each variant. In a dry run each kernel has one variant, in fp32."""
    done: set[str] = set()
    for variant in VARIANTS:
        if isinstance(variant.case, MergeCase) or (
            isinstance(variant.case, ScanCase) and variant.kernel != "scan_parts"
        ):
            continue  # a part of the check of the kernel before
        if setting.is_dry and variant.kernel in done:
            continue
        done.add(variant.kernel)
        dtype = "fp32" if setting.is_dry or isinstance(variant.case, ScanCase) else variant.case.dtype
        error = _error_of(setting, variant, DTYPES[dtype])
        yield Row(
            name=f"{variant.kernel}: {variant.name}",
            numbers={"error": error, "allowed": TOLERANCE[dtype]},
            is_fine=error <= TOLERANCE[dtype],
        )


def _error_of(setting: Setting, variant: Variant, dtype: torch.dtype) -> float:
    case = variant.case
    match case:
        case AttentionCase():
            return _attention_error(setting, case, dtype)
        case WriteCase():
            return _write_error(setting, case, dtype)
        case NormCase():
            x, residual = _random(setting, dtype, 7, case.width), _random(setting, dtype, 7, case.width)
            factor_I = _random(setting, torch.float32, case.width)
            if not case.has_residual:
                return _difference(setting.kernels.rms_norm(x, factor_I, 1e-5), rms_norm_plainly(x, factor_I, 1e-5))
            found = setting.kernels.add_rms_norm(x, residual, factor_I, 1e-5)
            expected = add_rms_norm_plainly(x, residual, factor_I, 1e-5)
            return max(_difference(*pair) for pair in zip(found, expected, strict=True))
        case GateCase():
            gate, up = torch.split(_random(setting, dtype, 5, 2 * case.width), case.width, dim=-1)
            found_TI = setting.kernels.gate_up(gate, up, case.activation)
            return _difference(found_TI, gate_up_plainly(gate, up, case.activation))
        case ScanCase():
            scores_NV = _random(setting, torch.float32, 9, case.vocab_size) * 4
            scores_NV[1, 5] = torch.nan
            scan = setting.kernels.first_pass(scores_NV, ScoreChanges()).scan
            plain = TorchRowScanner().scan(scores_NV, wants_mass=True)
            assert scan.log_mass_N is not None
            assert plain.log_mass_N is not None
            finite = ~plain.not_finite_N
            is_same = torch.equal(scan.best_N[finite], plain.best_N[finite])
            is_same &= torch.equal(scan.not_finite_N, plain.not_finite_N)
            return _difference(scan.log_mass_N[finite], plain.log_mass_N[finite]) if is_same else float("inf")
        case MergeCase():
            raise AssertionError("the check of attention with splits covers the merge")


def _attention_error(setting: Setting, case: AttentionCase, dtype: torch.dtype) -> float:
    pieces = (DRY_DECODES, DRY_CHUNKS) if setting.is_dry else (DECODES, CHUNKS)
    batch_pieces = pieces[0] if case.is_decode else pieces[1]
    lens = [before + count for before, count in batch_pieces]
    num_blocks = [-(-length // BLOCK_SIZE) for length in lens]
    order = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(0))
    tables = torch.split(order, num_blocks)
    rows = [
        SyntheticRow(ids_n=torch.zeros(count, dtype=torch.int64), blocks=table.tolist(), start=before)
        for (before, count), table in zip(batch_pieces, tables, strict=True)
    ]
    batch = synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=sum(num_blocks), device=setting.device)
    key_pool, value_pool = (
        _random(setting, dtype, sum(num_blocks) + 1, BLOCK_SIZE, NUM_KV_HEADS, dim)
        for dim in (case.key_dim, case.value_dim)
    )
    num_heads = NUM_KV_HEADS * case.group
    query_THD = _random(setting, dtype, len(batch.input_ids_T), num_heads, case.key_dim)
    rule = AttentionRule(
        scaling=case.key_dim**-0.5,
        window_tokens=100 if "window" in case.scores else None,
        chunk_tokens=300 if "chunk" in case.scores else None,
        softcap=2.0 if "softcap" in case.scores else None,
        sinks_H=_random(setting, torch.float32, num_heads) if "sinks" in case.scores else None,
        slopes_H=_random(setting, torch.float32, num_heads).abs() / 10 if "slopes" in case.scores else None,
    )
    tiles = map_tiles(batch.query_starts, case.tile, group=case.group, num_tokens=len(query_THD))
    indices = PagedIndices(batch.query_starts, batch.context_lens_R, batch.block_tables_RB)
    kernels = setting.kernels if case.is_split else TritonKernels(num_multiprocessors=1)  # one splits no context
    found = kernels.attention(query_THD, key_pool, value_pool, indices, tiles, rule)
    step = ReferenceAttention().prepare(batch, block_size=BLOCK_SIZE)
    expected = step.attend(query_THD.float(), key_pool.float(), value_pool.float(), rule)
    return _difference(found, expected)


def _write_error(setting: Setting, case: WriteCase, dtype: torch.dtype) -> float:
    num_tokens, num_blocks = 33, 4
    query = _random(setting, dtype, num_tokens, NUM_KV_HEADS * case.group, case.key_dim)
    key = _random(setting, dtype, num_tokens, NUM_KV_HEADS, case.key_dim)
    value = _random(setting, dtype, num_tokens, NUM_KV_HEADS, case.value_dim)
    tables = None
    if case.turn != "none":
        angles = _random(setting, torch.float32, num_tokens, case.rotary_dim) * 3
        tables = RotaryTables(angles.cos().to(dtype), angles.sin().to(dtype), is_interleaved=case.turn == "interleaved")
    places_T = torch.randperm(num_blocks * BLOCK_SIZE, generator=torch.Generator().manual_seed(0))[:num_tokens]
    places_T = places_T.to(setting.device)
    shapes = [(num_blocks, BLOCK_SIZE, NUM_KV_HEADS, dim) for dim in (case.key_dim, case.value_dim)]
    keys, values = (torch.zeros(shape, dtype=dtype, device=setting.device) for shape in shapes)
    expected_keys, expected_values = keys.clone(), values.clone()
    found = setting.kernels.write_kv(query, key, value, keys, values, places_T=places_T, tables=tables)
    expected = write_plainly(query, key, value, expected_keys, expected_values, places_T, tables)
    pairs = ((found, expected), (keys, expected_keys), (values, expected_values))
    return max(_difference(*pair) for pair in pairs)


def _random(setting: Setting, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator(setting.device).manual_seed(len(shape) + shape[-1])
    return torch.randn(*shape, generator=generator, device=setting.device).to(dtype)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    largest = expected.float().abs().max().clamp(min=1e-9)
    return float((found.float() - expected.float()).abs().max() / largest)
