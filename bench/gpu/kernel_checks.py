"""Compares each variant of the kernels with its plain torch, on the device."""

# T tokens, H query heads, K key/value heads, D key width, E value width

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import fields, replace
from itertools import accumulate

import numpy as np
import torch
from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.attention.kv_write import write_plainly
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.layers.device_experts import order_pairs
from textmill_shard.layers.low_rank_tables import LowRankTables
from textmill_shard.model.adapter import LowRank
from textmill_shard.model.decode_rows import FED, DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_scales import KvScales, store
from textmill_shard.model.score_changes import (
    BiasChange,
    CountChange,
    IdLists,
    MaskChange,
    RepetitionChange,
    ScoreChanges,
    Temperatures,
)
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.sampling import noise
from textmill_shard.sampling.row_scan import TorchRowScanner
from textmill_shard.triton_kernels.cases import (
    AttentionCase,
    ExpertCase,
    GateCase,
    LowRankCase,
    MergeCase,
    NoiseCase,
    NormCase,
    PlanCase,
    ScanCase,
    UnpackCase,
    WriteCase,
)
from textmill_shard.triton_kernels.interface import PagedIndices
from textmill_shard.triton_kernels.kernels import TritonKernels
from textmill_shard.triton_kernels.plain_layers import (
    add_low_rank_plainly,
    add_rms_norm_plainly,
    expert_product_plainly,
    gate_up_plainly,
    rms_norm_plainly,
)
from textmill_shard.triton_kernels.plain_rows import unpack_rows_plainly
from textmill_shard.triton_kernels.tile_map import plan_tiles_plainly
from textmill_shard.triton_kernels.tiles import Tile
from textmill_shard.triton_kernels.variants import BLOCK_SIZE, FIRST_WITH_E4M3, VARIANTS, Variant

from bench.gpu.report import Row
from bench.gpu.setting import Setting

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Largest difference, relative to the largest value: a result is rounded to 8, 11 or 24 bits, and so are weights of
# attention before they meet the values. Products of tensor cores in fp32 are not used.
TOLERANCE = {"bf16": 2e-2, "fp16": 3e-3, "fp32": 1e-5}
STORED = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
NUM_KV_HEADS = 2
NUM_SCANNED = 9  # rows of scores
NUM_CANDIDATES = 1024  # of a row, as a draw without a top-k takes
# (tokens before the step, tokens of the step)
DECODES = ((0, 1), (15, 1), (64, 1), (1000, 1), (4999, 1))
CHUNKS = ((0, 200), (130, 33), (1000, 64), (5, 2), (63, 1))
DRY_VOCABULARY = 10_000  # three parts of a row, the last of them short
DRY_DECODES, DRY_CHUNKS = ((0, 1), (40, 1)), ((0, 9), (17, 3))


def check_kernels(
    setting: Setting, *, number: int, of: int, done: Collection[str], begin: Callable[[str], None]
) -> Iterator[Row]:
    """Yield a row for each variant `number`, `number + of` ... that is not `done`, the samples of the table first.

    `begin` is called before each. An exception that leaves the device alive becomes a row, other ones pass through.
    """
    for variant in _checked_variants(setting)[number::of]:
        name = f"{variant.kernel}: {variant.name}"
        if name in done:
            continue
        begin(name)
        dtype = "fp32" if setting.is_dry else getattr(variant.case, "dtype", "fp32")
        try:
            error = _error_of(setting, variant, DTYPES[dtype])
        except Exception as fault:
            setting.check_device()
            yield Row(name, {"failed": f"{type(fault).__name__}: {fault}".partition("\n")[0]}, is_fine=False)
            continue
        yield Row(name, {"error": error, "allowed": TOLERANCE[dtype]}, is_fine=error <= TOLERANCE[dtype])


def _checked_variants(setting: Setting) -> list[Variant]:
    """Return the variants that are run. A dry run takes one variant of each kernel and type of keys, in fp32."""
    found, kinds = list[Variant](), set[str]()
    for variant in sorted(VARIANTS, key=lambda variant: not variant.is_sample):
        if isinstance(variant.case, MergeCase) or (
            isinstance(variant.case, ScanCase) and variant.kernel != "scan_parts"
        ):
            continue  # a part of the check of the kernel before
        changes = getattr(variant.case, "changes", ())
        if setting.is_dry and len(changes) == 1:
            continue
        kind = f"{variant.kernel}, {getattr(variant.case, 'stored', None)}, {changes}"
        kind += f", {getattr(variant.case, 'has_candidates', False)}"
        if setting.is_dry and kind in kinds:
            continue
        kinds.add(kind)
        if getattr(variant.case, "stored", None) == "fp8e4nv" and not _has_e4m3(setting):
            continue
        found.append(variant)
    return found


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
            return worst(_difference(*pair) for pair in zip(found, expected, strict=True))
        case GateCase():
            gate, up = torch.split(_random(setting, dtype, 5, 2 * case.width), case.width, dim=-1)
            found_TI = setting.kernels.gate_up(gate, up, case.activation)
            return _difference(found_TI, gate_up_plainly(gate, up, case.activation))
        case ScanCase():
            return _scan_error(setting, case)
        case NoiseCase():
            seeds_S2 = torch.tensor([[7, 0], [2**32 - 1, 2**31 + 5]], device=setting.device)
            ids_SC = torch.arange(2 * case.num_ids, device=setting.device).view(2, -1) * 119
            at = (seeds_S2, torch.tensor([3, 0], device=setting.device), ids_SC)
            return _difference(setting.kernels.gumbel(*at), noise.gumbel(*at))
        case LowRankCase():
            return _low_rank_error(setting, variant.kernel, case, dtype)
        case ExpertCase():
            return _expert_error(setting, case, dtype)
        case UnpackCase():
            return _unpack_error(setting, case)
        case PlanCase():
            return _plan_error(setting, case)
        case MergeCase():
            raise AssertionError("the check of attention with splits covers the merge")


def _plan_error(setting: Setting, case: PlanCase) -> float:
    """Return how many numbers of the plan of decodes, of chunks and of a long context are wrong."""
    lens = [(1, 700), (0, 0), (1, 90_000), (3 * case.num_queries + 1, 4000), *[(1, 300)] * 300]
    starts = torch.tensor([0, *accumulate(count for count, _ in lens)], dtype=torch.int32, device=setting.device)
    context_lens_R = torch.tensor([length for _, length in lens], dtype=torch.int32, device=setting.device)
    tile = Tile(rows=4 * case.num_queries, places=64, num_warps=4, num_stages=1)
    num_tokens = int(starts[-1]) + 5
    found = setting.kernels.plan_tiles(
        starts, context_lens_R, tile, group=4, num_kv_heads=NUM_KV_HEADS, num_tokens=num_tokens
    )
    expected = plan_tiles_plainly(
        starts, context_lens_R, tile, group=4, num_tokens=num_tokens, num_further=len(found.further_tiles)
    )
    pairs = (
        (found.sequences, expected.sequences),
        (found.parts_before, expected.parts_before),
        (found.further_tiles, expected.further_tiles),
    )
    return float(sum(int((one != other).sum()) for one, other in pairs))


def _unpack_error(setting: Setting, case: UnpackCase) -> float:
    """Return how many numbers of a decode step of three rows, in the memory of a graph for eight, are wrong."""
    step = DecodeRows(
        slots_R=np.array([4, 0, 2]),
        starts_R=np.array([0, 200 * BLOCK_SIZE + 3, 2 * BLOCK_SIZE - 1]),
        tokens_R=np.array([7, FED, 5]),
        block_tables_RB=np.arange(3 * 201, dtype=np.int32).reshape(3, 201),
        adapters_R=np.array([1, 0, 2]),
        is_long_rope_R=np.array([True, False, True]),
        rope_deltas_R=np.array([0, -3, 2]),
    )
    packed = torch.from_numpy(step.pack()).to(setting.device)
    last_ids_S = torch.arange(100, 105, device=setting.device)
    found, expected = (_graph_rows(setting, case) for _ in range(2))
    for unpack, batch in ((setting.kernels.unpack_rows, found), (unpack_rows_plainly, expected)):
        unpack(packed, last_ids_S, batch, scratch_block=999, block_size=BLOCK_SIZE)
    pairs = [(getattr(found, field.name), getattr(expected, field.name)) for field in fields(found)]
    return float(sum((mine.cpu() != other.cpu()).sum() for mine, other in pairs if torch.is_tensor(mine)))


def _graph_rows(setting: Setting, case: UnpackCase, num_rows: int = 8) -> ForwardBatch:
    def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=setting.device)

    return ForwardBatch(
        input_ids_T=numbers(num_rows),
        position_ids_T=numbers(num_rows),
        kv_places_T=numbers(num_rows),
        query_starts=numbers(num_rows + 1),
        context_lens_R=numbers(num_rows, dtype=torch.int32),
        block_tables_RB=numbers(num_rows, 300, dtype=torch.int32),
        logit_rows_N=numbers(num_rows),
        max_query_len=1,
        max_context_len=300 * BLOCK_SIZE,
        slots_R=numbers(num_rows),
        adapters_R=numbers(num_rows, dtype=torch.int32) if case.has_adapters else None,
        is_long_rope_T=numbers(num_rows, dtype=torch.bool) if case.has_two_rope_tables else None,
        rope_positions_3T=numbers(3, num_rows) if case.has_rope_positions else None,
    )


def _scan_error(setting: Setting, case: ScanCase) -> float:
    if setting.is_dry:
        case = replace(case, vocab_size=min(case.vocab_size, DRY_VOCABULARY))
    logits_NV = _random(setting, torch.float32, NUM_SCANNED, case.vocab_size) * 4
    logits_NV[1, 5] = torch.nan
    changes = _changes(setting, case)
    num_candidates = NUM_CANDIDATES if case.has_candidates else 0
    found, plain = (one.first_pass(logits_NV, changes, num_candidates) for one in (setting.kernels, TorchRowScanner()))
    assert found.scan.log_mass_N is not None
    assert plain.scan.log_mass_N is not None
    finite = ~plain.scan.not_finite_N
    is_same = torch.equal(found.best_N[finite], plain.best_N[finite])
    is_same &= torch.equal(found.scan.not_finite_N, plain.scan.not_finite_N)
    is_possible = plain.scores_NV[finite] > -torch.inf
    is_same &= torch.equal(found.scores_NV[finite] > -torch.inf, is_possible)
    is_same &= (found.candidates_NC is not None) == case.has_candidates
    if found.candidates_NC is not None:
        # The best of the scores that the kernel itself has changed: a rounding may exchange neighbours of plain torch.
        best_NC = found.scores_NV[finite].gather(1, found.candidates_NC[finite])
        is_same &= torch.equal(best_NC, found.scores_NV[finite].topk(num_candidates).values)
        ordered_NC = found.candidates_NC[finite].sort().values
        is_same &= bool((ordered_NC.diff() > 0).all())  # distinct ids
    if not is_same:
        return float("inf")
    # A GPU may round a product and a sum together.
    error = _difference(found.scores_NV[finite][is_possible], plain.scores_NV[finite][is_possible])
    masses = _difference(found.scan.log_mass_N[finite], plain.scan.log_mass_N[finite])
    if found.tempered_mass_N is None or plain.tempered_mass_N is None:
        return worst((error, masses))
    return worst((error, masses, _difference(found.tempered_mass_N[finite], plain.tempered_mass_N[finite])))


def _changes(setting: Setting, case: ScanCase) -> ScoreChanges:
    """Return changes of every second row, over as many slots as there are rows."""
    device, num_slots = setting.device, NUM_SCANNED
    slots_N = torch.arange(num_slots, device=device).flip(0)
    slots_N[::2] = -1
    width = min(700, case.vocab_size)
    ids_SE = torch.stack([torch.randperm(case.vocab_size, device=device)[:width] for _ in range(num_slots)])
    lists = IdLists(ids_SE, torch.arange(num_slots, device=device) * width // num_slots)
    amounts_SE = _random(setting, torch.float32, num_slots, width) * 3
    numbers_S = torch.linspace(0.5, 2.0, num_slots, device=device)
    forbidden_SV = _random(setting, torch.float32, num_slots, case.vocab_size) > 0.5
    names = case.changes
    return ScoreChanges(
        repetition=RepetitionChange(slots_N, lists, numbers_S) if "repetition" in names else None,
        counts=CountChange(slots_N, lists, amounts_SE.abs().round(), numbers_S, -numbers_S)
        if "counts" in names
        else None,
        bias=BiasChange(slots_N, lists, amounts_SE) if "bias" in names else None,
        mask=MaskChange(slots_N, forbidden_SV) if "mask" in names else None,
        temperatures=Temperatures(slots_N, numbers_S) if "temperature" in names else None,
    )


def _low_rank_error(setting: Setting, kernel: str, case: LowRankCase, dtype: torch.dtype) -> float:
    num_inputs, num_outputs = (case.width, 64) if kernel == "shrink" else (64, case.width)
    tables = LowRankTables(["layer"], setting.device)
    for place, rank in ((1, case.max_rank), (2, 1)):
        a_rI = _random(setting, dtype, rank, num_inputs) / num_inputs**0.5
        low = LowRank(a_rI, _random(setting, dtype, num_outputs, rank), scale=0.5)
        tables.put(place, {"layer": LowRankTables.to_device(low, setting.device)})
    places_T = torch.tensor([0, 1, 1, 2, 0, 1] + [2] * 40, dtype=torch.int32, device=setting.device)
    if case.is_decode:
        places_T = places_T[:7]
    x_TI = _random(setting, dtype, len(places_T), num_inputs)
    found_TO = _random(setting, dtype, len(places_T), num_outputs)
    expected_TO = found_TO.clone()
    add_low_rank_plainly(expected_TO, x_TI, tables.of("layer"), places_T)
    setting.kernels.add_low_rank(
        found_TO, x_TI, tables.of("layer"), places_T, max_rank=case.max_rank, is_decode=case.is_decode
    )
    return _difference(found_TO, expected_TO)


def _expert_error(setting: Setting, case: ExpertCase, dtype: torch.dtype) -> float:
    """Return the error of a product of which every second expert gets no row."""
    if setting.is_dry:
        case = replace(case, num_inputs=min(case.num_inputs, 136), num_outputs=min(case.num_outputs, 72))
    sizes = (case.num_inputs, case.num_outputs) if case.has_inputs_first else (case.num_outputs, case.num_inputs)
    weights = _random(setting, dtype, case.num_experts, *sizes) / case.num_inputs**0.5
    biases_EO = _random(setting, dtype, case.num_experts, case.num_outputs) if case.has_bias else None
    generator = torch.Generator().manual_seed(0)
    experts_NK = torch.randint(
        case.num_experts, (case.num_pairs // case.pairs_of_row, case.pairs_of_row), generator=generator
    )
    ids_E = torch.arange(case.num_experts, device=setting.device)
    order = order_pairs((experts_NK // 2 * 2).to(setting.device), ids_E, itemsize=dtype.itemsize)
    given = (_random(setting, dtype, len(experts_NK), case.num_inputs), weights, biases_EO, order)
    found = setting.kernels.expert_product(*given, has_inputs_first=case.has_inputs_first)
    return _difference(found, expert_product_plainly(*given, has_inputs_first=case.has_inputs_first))


def _has_e4m3(setting: Setting) -> bool:
    """Whether the device has numbers of fp8_e4m3fn, as Triton's interpreter does."""
    if setting.device.type != "cuda":
        return True
    major, minor = torch.cuda.get_device_capability(setting.device)
    return 10 * major + minor >= FIRST_WITH_E4M3


def _attention_error(setting: Setting, case: AttentionCase, dtype: torch.dtype) -> float:
    pieces = (DRY_DECODES, DRY_CHUNKS) if setting.is_dry else (DECODES, CHUNKS)
    batch_pieces = pieces[0] if case.is_decode else pieces[1]
    lens = [before + count for before, count in batch_pieces]
    num_blocks = [-(-length // BLOCK_SIZE) for length in lens]
    order = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(0))
    tables = torch.split(order, num_blocks)
    rows = [
        SyntheticRow(
            ids_n=torch.zeros(count, dtype=torch.int64),
            blocks=table.tolist(),
            start=before,
            span_ends_n=_span_ends(before, count) if "spans" in case.scores else None,
        )
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
        sees_spans="spans" in case.scores,
    )
    indices = PagedIndices(batch.query_starts, batch.context_lens_R, batch.block_tables_RB, batch.span_ends_T)
    kernels = setting.kernels
    if not case.is_split:  # a GPU without multiprocessors cuts no context
        kernels = TritonKernels(num_multiprocessors=0, capability=setting.kernels.capability)
    tiles = kernels.plan_tiles(
        batch.query_starts,
        batch.context_lens_R,
        case.tile,
        group=case.group,
        num_kv_heads=NUM_KV_HEADS,
        num_tokens=len(query_THD),
    )
    step = ReferenceAttention().prepare(batch, block_size=BLOCK_SIZE)
    if case.stored is not None:
        scales = _scales(setting)
        key_pool = store(key_pool, scales.keys_K, STORED[case.stored])
        value_pool = store(value_pool, scales.values_K, STORED[case.stored])
        found = kernels.attention(query_THD, key_pool, value_pool, indices, tiles, rule, scales)
        return _difference(found, step.attend(query_THD.float(), key_pool, value_pool, rule, scales))
    found = kernels.attention(query_THD, key_pool, value_pool, indices, tiles, rule)
    expected = step.attend(query_THD.float(), key_pool.float(), value_pool.float(), rule)
    return _difference(found, expected)


def _span_ends(start: int, count: int) -> torch.Tensor:
    """Return the ends of an image in the second quarter of a row's new tokens, 0 for the other tokens."""
    first, end = count // 4, count // 2
    ends_n = torch.zeros(count, dtype=torch.int32)
    ends_n[first:end] = start + end
    return ends_n


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
    stored = dtype if case.stored is None else STORED[case.stored]
    scales = None if case.stored is None else _scales(setting)
    keys, values = (torch.zeros(shape, dtype=stored, device=setting.device) for shape in shapes)
    expected_keys, expected_values = keys.clone(), values.clone()
    found = setting.kernels.write_kv(query, key, value, keys, values, places_T=places_T, tables=tables, scales=scales)
    expected = write_plainly(query, key, value, expected_keys, expected_values, places_T, tables, scales)
    if scales is not None:
        bits = (_worst_step(keys, expected_keys), _worst_step(values, expected_values))
        return worst((_difference(found, expected), *bits))
    pairs = ((found, expected), (keys, expected_keys), (values, expected_values))
    return worst(_difference(*pair) for pair in pairs)


def _scales(setting: Setting) -> KvScales:
    keys_K = torch.exp2(torch.arange(-6.0, NUM_KV_HEADS - 6, device=setting.device))
    return KvScales(keys_K=keys_K, values_K=keys_K * 2)


def _worst_step(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return infinity where more than 1 % of the numbers of 8 bits differ, else 0.

    A number near the middle of two may become either of them. Triton's interpreter rounds in another way, so that a dry
    run tells nothing of the numbers.
    """
    share = float((found.view(torch.uint8) != expected.view(torch.uint8)).float().mean())
    return float("inf") if share > 0.01 and found.device.type == "cuda" else 0.0


def worst(errors: Iterable[float]) -> float:
    """Return the largest error, infinity where one is no number: Python's `max` passes a NaN over."""
    return max(math.inf if math.isnan(error) else error for error in errors)


def _random(setting: Setting, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator(setting.device).manual_seed(len(shape) + shape[-1])
    return torch.randn(*shape, generator=generator, device=setting.device).to(dtype)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    largest = expected.float().abs().max().clamp(min=1e-9)
    return float((found.float() - expected.float()).abs().max() / largest)
