"""The table of the variants of all kernels, from which the tests and the compile check are made.

A variant is a kernel with the constants for which the compiler makes machine code. `kernels.py` launches with the
functions of `constants.py` from which the rows are made, and the tests hold the launches, the interpreter and the
compiler to the rows of `VARIANTS`. This file imports no triton.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from textmill_shard.triton_kernels.cases import (
    CHANGES,
    LARGEST_STORED,
    SCORE_CHANGES,
    SCORES,
    SPAN_SCORES,
    STORED_NAMES,
    AttentionCase,
    Case,
    Dtype,
    ExpertCase,
    GateCase,
    LowRankCase,
    MergeCase,
    NoiseCase,
    NormCase,
    PlanCase,
    ScanCase,
    Stored,
    UnpackCase,
    WriteCase,
)
from textmill_shard.triton_kernels.constants import (
    NOISE_IDS,
    PLANNED_SEQUENCES,
    SCAN_IDS,
    attention_constants,
    expand_constants,
    expert_constants,
    gate_constants,
    merge_constants,
    norm_constants,
    scan_constants,
    shrink_constants,
    unpack_constants,
    write_constants,
)
from textmill_shard.triton_kernels.interface import ACTIVATIONS
from textmill_shard.triton_kernels.tiles import power_of_two

TARGETS = (80, 89, 90, 100)  # compute capabilities: A100; L4, L40S and RTX 40; H100 and H200; B200
FIRST_WITH_E4M3 = 89  # compute capability
BLOCK_SIZE = 16  # tokens of a block in the rows of the table


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table."""

    kernel: str  # name of the function in `device/`
    name: str
    case: Case
    # Types of the arguments in the order of the kernel, in Triton's words; None is an argument that is left out.
    types: tuple[str | None, ...]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1
    targets: tuple[int, ...] = TARGETS  # compute capabilities that have the kernel's types
    is_sample: bool = False  # compiled in every run of the tests
    why_spills: str | None = None  # the reason why registers may overflow into local memory; None: they must not


def _types(case: AttentionCase | WriteCase) -> str:
    """Return the types of a variant, as docs/kernels.md names them."""
    return case.dtype if case.stored is None else f"{case.dtype} over {STORED_NAMES[case.stored]}"


def _targets(stored: Stored | None) -> tuple[int, ...]:
    return tuple(target for target in TARGETS if stored != "fp8e4nv" or target >= FIRST_WITH_E4M3)


def _attention(case: AttentionCase, *, is_sample: bool = False, why_spills: str | None = None) -> Variant:
    tile = case.tile
    pointer = f"*{case.dtype}"
    stored, scale = f"*{case.stored or case.dtype}", "*fp32" if case.stored else None
    partial = "*fp32" if case.is_split else None
    phase = ("decode" if case.is_decode else "chunk") + (", split" if case.is_split else "")
    options = "".join(f", {score}" for score in case.scores)
    return Variant(
        kernel="paged_attention",
        name=f"{_types(case)}, {case.key_dim}/{case.value_dim}, {case.group} heads a group, {phase}{options}",
        case=case,
        types=(
            *(pointer, stored, stored, pointer, partial, partial, partial),
            *("*i32", *(("*i32", "*i32") if case.is_split else (None, None)), "*i32", "*i32", "*i32"),
            *("*fp32" if score in case.scores else None for score in ("sinks", "slopes")),
            "*i32" if "spans" in case.scores else None,
            *(scale, scale),
            *("fp32", "fp32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"),
        ),
        constants=attention_constants(
            group=case.group,
            key_dim=case.key_dim,
            value_dim=case.value_dim,
            block_size=BLOCK_SIZE,
            tile=tile,
            has_window="window" in case.scores,
            has_chunk="chunk" in case.scores,
            has_softcap="softcap" in case.scores,
            has_sinks="sinks" in case.scores,
            has_slopes="slopes" in case.scores,
            has_spans="spans" in case.scores,
            is_split=case.is_split,
            has_scales=case.stored is not None,
        ),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        targets=_targets(case.stored),
        is_sample=is_sample,
        why_spills=why_spills,
    )


def _merge(case: MergeCase, *, is_sample: bool = False) -> Variant:
    return Variant(
        kernel="merge_splits",
        name=f"{case.dtype}, {case.value_dim}, {'decode' if case.is_decode else 'chunk'}",
        case=case,
        types=("*fp32", "*fp32", "*fp32", f"*{case.dtype}", "*i32", "*i32", "*i32", "*i32", "i32", "i32", "i32", "i32"),
        constants=merge_constants(group=case.group, value_dim=case.value_dim, tile=case.tile),
        num_warps=4,
        is_sample=is_sample,
    )


def _plan(case: PlanCase) -> Variant:
    return Variant(
        kernel="plan_tiles",
        name=f"{case.num_queries} queries of a tile",
        case=case,
        types=("*i32", "*i32", "*i32", "*i32", "*i32", "i32", "i32", "i32", "i32"),
        constants={"QUERIES": case.num_queries, "SEQUENCES": PLANNED_SEQUENCES},
        num_warps=4,
        is_sample=case.num_queries == 4,
    )


def _write(case: WriteCase, *, is_sample: bool = False) -> Variant:
    pointer = f"*{case.dtype}"
    turned = None if case.turn == "none" else pointer
    stored, scale = f"*{case.stored or case.dtype}", "*fp32" if case.stored else None
    turn = "no turn" if case.turn == "none" else f"{case.turn} turn of {case.rotary_dim}"
    return Variant(
        kernel="write_kv",
        name=f"{_types(case)}, {case.key_dim}/{case.value_dim}, {case.group} heads a group, {turn}",
        case=case,
        types=(
            *(pointer, pointer, pointer, turned, stored, stored, "*i64", turned, turned, scale, scale),
            *("i32",) * 7,
        ),
        constants=write_constants(
            group=case.group,
            key_dim=case.key_dim,
            value_dim=case.value_dim,
            rotary_dim=case.rotary_dim,
            is_interleaved=case.turn == "interleaved",
            largest_stored=None if case.stored is None else LARGEST_STORED[case.stored],
        ),
        num_warps=1,
        targets=_targets(case.stored),
        is_sample=is_sample,
    )


def _norm(case: NormCase, *, is_sample: bool = False) -> Variant:
    pointer = f"*{case.dtype}"
    other = pointer if case.has_residual else None
    constants, num_warps = norm_constants(width=case.width, has_residual=case.has_residual)
    return Variant(
        kernel="rms_norm",
        name=f"{case.dtype}, {case.width}{', residual' if case.has_residual else ''}",
        case=case,
        types=(pointer, other, "*fp32", pointer, other, "fp32", "i32", "i32", "i32", "i32"),
        constants=constants,
        num_warps=num_warps,
        is_sample=is_sample,
    )


def _gate(case: GateCase, *, is_sample: bool = False) -> Variant:
    pointer = f"*{case.dtype}"
    return Variant(
        kernel="gate_up",
        name=f"{case.dtype}, {case.width}, {case.activation}",
        case=case,
        types=(pointer, pointer, pointer, "i32", "i32"),
        constants=gate_constants(width=case.width, activation=case.activation),
        num_warps=4,
        is_sample=is_sample,
    )


def _low_rank(kernel: Literal["shrink", "expand"], case: LowRankCase, *, is_sample: bool = False) -> Variant:
    pointer = f"*{case.dtype}"
    is_shrink = kernel == "shrink"
    constants = (
        shrink_constants(case.tile, num_inputs=case.width)
        if is_shrink
        else expand_constants(case.tile, num_outputs=case.width)
    )
    return Variant(
        kernel=kernel,
        name=f"{case.dtype}, {case.width}, ranks up to {case.max_rank}, {'decode' if case.is_decode else 'chunk'}",
        case=case,
        types=(
            *(pointer, "*i32", "*i64", "*i32"),
            *(("*fp32", pointer) if is_shrink else (pointer,)),
            *("i32", "i32"),
        ),
        constants=constants,
        num_warps=4,
        num_stages=case.tile.num_stages,
        is_sample=is_sample,
    )


def _low_rank_rows(kernel: Literal["shrink", "expand"]) -> Sequence[Variant]:
    rows = [
        _low_rank(kernel, LowRankCase("bf16", 4096, max_rank, is_decode), is_sample=max_rank == 16 and is_decode)
        for max_rank, is_decode in product((16, 64, 512), _BOTH)
    ]
    rows += [_low_rank(kernel, LowRankCase("bf16", 14_336, 16, is_decode)) for is_decode in _BOTH]
    rows.append(_low_rank(kernel, LowRankCase("fp16", 4096, 16, True)))
    return [*rows, *(_low_rank(kernel, LowRankCase("fp32", 576, 16, is_decode)) for is_decode in _BOTH)]


def _expert(case: ExpertCase, *, is_sample: bool = False, why_spills: str | None = None) -> Variant:
    pointer, tile = f"*{case.dtype}", case.tile
    sizes = f"{case.num_experts} experts, {case.num_inputs} to {case.num_outputs}"
    options = ", inputs first" if case.has_inputs_first else ""
    options += ", bias" if case.has_bias else ""
    return Variant(
        kernel="expert_product",
        name=f"{case.dtype}, {sizes}{options}, {case.pairs_of_row} pairs a row, tiles of {tile.rows}",
        case=case,
        types=(pointer, pointer, pointer if case.has_bias else None, "*i64", "*i32", pointer, "i32"),
        constants=expert_constants(
            tile,
            num_experts=case.num_experts,
            num_inputs=case.num_inputs,
            num_outputs=case.num_outputs,
            pairs_of_row=case.pairs_of_row,
            has_inputs_first=case.has_inputs_first,
        ),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        is_sample=is_sample,
        why_spills=why_spills,
    )


def _expert_rows() -> Sequence[Variant]:
    """Return the products of Qwen3-30B-A3B, Mixtral 8x7B and gpt-oss-20b: decodes, chunks of 1,024 and 8,192 tokens."""
    rows = []
    sizes: tuple[tuple[Dtype, int], ...]
    sizes = ("bf16", 1), ("bf16", 1024), ("bf16", 8192), ("fp16", 1), ("fp32", 1), ("fp32", 8192)
    for dtype, num_tokens in sizes:
        into = ExpertCase(dtype, 128, 2048, 1536, 8 * num_tokens, pairs_of_row=8)
        rows.append(_expert(into, is_sample=(dtype, num_tokens) == ("bf16", 1)))
        spills = (dtype, num_tokens) == ("fp32", 8192)
        down = ExpertCase(dtype, 128, 768, 2048, 8 * num_tokens)
        rows.append(_expert(down, why_spills=_FEW_REGISTERS if spills else None))
    for num_tokens in (1, 8192):
        rows.append(_expert(ExpertCase("bf16", 8, 4096, 28_672, 2 * num_tokens, pairs_of_row=2)))
        rows.append(_expert(ExpertCase("bf16", 8, 14_336, 4096, 2 * num_tokens)))
    sizes = ("bf16", 1), ("bf16", 256), ("bf16", 8192), ("fp16", 8192), ("fp32", 1), ("fp32", 8192)
    for dtype, num_tokens in sizes:
        into = ExpertCase(dtype, 32, 2880, 5760, 4 * num_tokens, pairs_of_row=4, has_inputs_first=True, has_bias=True)
        rows.append(_expert(into))
        rows.append(_expert(replace(into, num_outputs=2880, pairs_of_row=1)))
    return rows


def _scans(case: ScanCase, *, is_sample: bool = False) -> tuple[Variant, ...]:
    num_parts = -(-case.vocab_size // SCAN_IDS)
    has_temperature = "temperature" in case.changes
    named = (
        ("changes", case.changes_scores),
        ("temperature", has_temperature),
        ("candidates", case.has_candidates),
    )
    options = "".join(f", {name}" for name, has_it in named if has_it)

    def given(has_it: bool, *types: str) -> tuple[str | None, ...]:
        return types if has_it else (None,) * len(types)

    parts = Variant(
        kernel="scan_parts",
        name=f"{case.vocab_size} ids{options}",
        case=case,
        types=(
            "*fp32",
            *given(case.changes_scores, "*fp32"),
            *("*fp32", "*i32", *given(has_temperature, "*fp32"), "*fp32", "*fp32", "*fp32"),
            "*i64" if case.has_candidates else None,
            *given(
                case.changes_scores,
                *("*i64", "*i64", "*i64", "*fp32"),  # repetition
                *("*i64", "*i64", "*i64", "*fp32", "*fp32", "*fp32"),  # counts
                *("*i64", "*i64", "*i64", "*fp32"),  # bias
                *("*i64", "*i1"),  # mask
            ),
            *given(has_temperature, "*i64", "*fp32"),
            *("i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"),
        ),
        constants=scan_constants(
            has_changes=case.changes_scores,
            has_temperature=has_temperature,
            has_candidates=case.has_candidates,
        ),
        num_warps=4,
        is_sample=is_sample and bool(case.changes),
    )
    if case.has_candidates or case.changes not in ((), ("temperature",)):
        return (parts,)  # the parts are put together in the same way
    merge = Variant(
        kernel="merge_parts",
        name=f"{case.vocab_size} ids{options}",
        case=case,
        types=(
            *("*fp32", "*i32", *given(has_temperature, "*fp32"), "*fp32", "*fp32", "*fp32", "*i64", "*i1", "*fp32"),
            *given(has_temperature, "*fp32", "*i64", "*fp32"),
            "i32",
        ),
        constants={"PARTS": power_of_two(num_parts), "HAS_TEMPERATURE": has_temperature},
        num_warps=1,
        is_sample=is_sample,
    )
    return parts, merge


def _noise(case: NoiseCase) -> Variant:
    return Variant(
        kernel="gumbel",
        name=f"{case.num_ids} ids of a row",
        case=case,
        types=("*i64", "*i64", "*i64", "*fp64", "i32", "i32"),
        constants={"IDS": NOISE_IDS},
        num_warps=4,
        is_sample=True,
    )


def _unpack(case: UnpackCase, *, is_sample: bool = False) -> Variant:
    names = ("adapters", case.has_adapters), ("two rotary tables", case.has_two_rope_tables)
    given = [name for name, has_it in (*names, ("rotary positions", case.has_rope_positions)) if has_it]
    return Variant(
        kernel="unpack_rows",
        name=", ".join(["decode rows", *given]),
        case=case,
        types=(
            *("*i32", "*i64", "*i64", "*i64", "*i64", "*i64", "*i32", "*i32"),
            "*i32" if case.has_adapters else None,
            "*i1" if case.has_two_rope_tables else None,
            "*i64" if case.has_rope_positions else None,
            *("i32", "i32", "i32"),
        ),
        constants=unpack_constants(block_size=BLOCK_SIZE),
        num_warps=1,
        is_sample=is_sample,
    )


def _scan_rows() -> Sequence[Variant]:
    rows = [
        row for changes in ((), ("temperature",)) for row in _scans(ScanCase(128_256, changes), is_sample=not changes)
    ]
    rows += _scans(ScanCase(128_256, SCORE_CHANGES))
    rows += [
        row
        for changes in ((), ("temperature",), SCORE_CHANGES, CHANGES)
        for row in _scans(ScanCase(128_256, changes, has_candidates=True), is_sample=changes == CHANGES)
    ]
    return [row for kernel in ("scan_parts", "merge_parts") for row in rows if row.kernel == kernel]


# Key and value width of the models that are served: 64 (small models), 80 (StableLM, Phi-2), 96 (Phi-3), 128 (most),
# 192/128 (DeepSeek), 256 (Gemma).
_WIDTHS = ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256))
_DTYPES: tuple[Dtype, ...] = ("bf16", "fp16", "fp32")
_STORED: tuple[Stored, ...] = ("fp8e4nv", "fp8e5")
_BOTH = (True, False)
_ONE_REGISTER = "one register is stored before the loop over the keys and read behind it, once per program"
_FEW_REGISTERS = "for sm_89 the compiler keeps to 80 registers, where it takes 96 for the other GPUs"


def _attention_rows() -> Sequence[Variant]:
    rows = []
    for dtype, (key_dim, value_dim), is_decode in product(_DTYPES, _WIDTHS, (True, False)):
        if dtype == "fp16" and (key_dim, value_dim) != (128, 128):
            continue  # the machine code of fp16 is that of bf16 with another number format
        case = AttentionCase(dtype, 4, key_dim, value_dim, is_decode)
        spills = (dtype, key_dim, is_decode) == ("fp32", 192, False)
        is_sample = dtype == "bf16" and key_dim == 128
        rows.append(_attention(case, is_sample=is_sample, why_spills=_ONE_REGISTER if spills else None))
    for scores, is_decode in product((*((score,) for score in SCORES), SCORES), (True, False)):
        case = AttentionCase("bf16", 4, 128, 128, is_decode, scores)
        rows.append(_attention(case))
    rows += [_attention(AttentionCase("bf16", 4, 128, 128, False, scores)) for scores in SPAN_SCORES]
    rows += [_attention(AttentionCase("bf16", group, 128, 128, True)) for group in (1, 3, 7, 16)]
    rows.append(_attention(AttentionCase("bf16", 50, 128, 128, True), why_spills=_ONE_REGISTER))
    rows += [_attention(AttentionCase("bf16", group, 128, 128, False)) for group in (1, 7)]
    for key_dim, value_dim in _WIDTHS:
        case = AttentionCase("bf16", 4, key_dim, value_dim, True, is_split=True)
        rows.append(_attention(case, is_sample=key_dim == 128))
    rows.append(_attention(AttentionCase("bf16", 4, 128, 128, True, SCORES, is_split=True)))
    rows.append(_attention(AttentionCase("fp32", 4, 128, 128, True, is_split=True)))
    # Few tokens of a prompt, alone or beside a few decode rows, leave multiprocessors idle as well.
    for key_dim, value_dim in _WIDTHS:
        rows.append(_attention(AttentionCase("bf16", 4, key_dim, value_dim, False, is_split=True)))
    for scores in (SCORES, *SPAN_SCORES):
        rows.append(_attention(AttentionCase("bf16", 4, 128, 128, False, scores, is_split=True)))
    rows.append(_attention(AttentionCase("fp32", 4, 128, 128, False, is_split=True)))
    for stored, is_decode in product(_STORED, (True, False)):
        case = AttentionCase("bf16", 4, 128, 128, is_decode, stored=stored)
        rows.append(_attention(case, is_sample=stored == "fp8e4nv" and is_decode))
    for key_dim, value_dim in ((64, 64), (192, 128), (256, 256)):
        rows += [_attention(AttentionCase("bf16", 4, key_dim, value_dim, decode, stored="fp8e4nv")) for decode in _BOTH]
    rows += [_attention(AttentionCase("bf16", 4, 128, 128, decode, SCORES, stored="fp8e4nv")) for decode in _BOTH]
    rows.append(_attention(AttentionCase("fp16", 4, 128, 128, True, stored="fp8e4nv")))
    rows += [_attention(AttentionCase("fp32", 4, 128, 128, decode, stored="fp8e4nv")) for decode in _BOTH]
    for stored, is_decode in product(_STORED, _BOTH):
        case = AttentionCase("bf16", 4, 128, 128, is_decode, is_split=True, stored=stored)
        rows.append(_attention(case))
    return rows


def _write_rows() -> Sequence[Variant]:
    rows = [_write(WriteCase(dtype, 4, 128, 128, "half", 128), is_sample=dtype == "bf16") for dtype in _DTYPES]
    rows += [_write(WriteCase("bf16", 4, key_dim, value_dim)) for key_dim, value_dim in ((128, 128), (192, 128))]
    rows += [_write(WriteCase("bf16", 1, 80, 80, "half", 32)), _write(WriteCase("bf16", 7, 64, 64, "half", 64))]
    rows += [_write(WriteCase("bf16", 16, 128, 128, "interleaved", 64))]
    rows += [_write(WriteCase("bf16", 4, 256, 256, "half", 256))]
    rows += [_write(WriteCase("bf16", 4, 128, 128, "half", 128, stored)) for stored in _STORED]
    rows += [_write(WriteCase("bf16", 4, 192, 128, stored="fp8e4nv"))]
    rows += [_write(WriteCase("fp32", 4, 128, 128, "half", 128, "fp8e4nv"))]
    return rows


VARIANTS: tuple[Variant, ...] = (
    *_attention_rows(),
    *(_merge(MergeCase("bf16", dim, decode)) for dim, decode in product((64, 128, 256), _BOTH)),
    _merge(MergeCase("fp32", 128), is_sample=True),
    *(_plan(PlanCase(number)) for number in (4, 32)),
    *_write_rows(),
    *(_norm(NormCase(dtype, 4096, has_residual=True), is_sample=dtype == "bf16") for dtype in _DTYPES),
    *(_norm(NormCase("bf16", width)) for width in (64, 128, 576, 3072, 4096, 8192, 16_384)),
    *(_norm(NormCase("bf16", width, has_residual=True)) for width in (3072, 8192, 16_384)),
    *(_gate(GateCase("bf16", 14_336, activation), is_sample=activation == "silu") for activation in ACTIVATIONS),
    *(_gate(GateCase(dtype, 14_336, "silu")) for dtype in ("fp16", "fp32")),
    *_scan_rows(),
    *_low_rank_rows("shrink"),
    *_low_rank_rows("expand"),
    *_expert_rows(),
    _noise(NoiseCase(1024)),
    _unpack(UnpackCase(), is_sample=True),
    _unpack(UnpackCase(has_adapters=True)),
    _unpack(UnpackCase(has_two_rope_tables=True)),
    _unpack(UnpackCase(has_adapters=True, has_two_rope_tables=True, has_rope_positions=True)),
)
