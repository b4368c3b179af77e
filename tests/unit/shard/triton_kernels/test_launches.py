"""Each row of the table of variants is what `TritonKernels` launches for its case, so that the compile check is theirs.

The launches are noted with the types of their arguments, their constants, warps and stages, and nothing is computed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from textmill_shard.attention.base import RotaryTables
from textmill_shard.layers.low_rank_tables import LowRankTables
from textmill_shard.model.adapter import LowRank
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.model.score_changes import (
    BiasChange,
    CountChange,
    IdLists,
    MaskChange,
    RepetitionChange,
    ScoreChanges,
    Temperatures,
)
from textmill_shard.triton_kernels import launching
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
from textmill_shard.triton_kernels.interface import ExpertOrder, PagedIndices
from textmill_shard.triton_kernels.tiles import Tile
from textmill_shard.triton_kernels.variants import BLOCK_SIZE, VARIANTS, Variant

from tests.fakes.kernel_cases import STORED_TYPES, Shape, interpreted_kernels, rule_of
from tests.fakes.plain_kernels import H100_MULTIPROCESSORS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WORDS = {
    **{dtype: word for word, dtype in DTYPES.items()},
    **{dtype: word for word, dtype in STORED_TYPES.items()},
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
NUM_ROWS = 2
Launch = tuple[Any, ...]


def launch_key(kernel: str, types: Any, constants: Mapping[str, Any], num_warps: int, num_stages: int) -> Launch:
    return kernel, tuple(types), tuple(sorted(constants.items())), num_warps, num_stages


def word_of(value: Any) -> str | None:
    """Return Triton's word for the type of an argument."""
    if value is None:
        return None
    if torch.is_tensor(value):
        return f"*{WORDS[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


@contextmanager
def noted_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Launch]]:
    launches: set[Launch] = set()

    def note(
        kernel: Any, grid: Any, *arguments: Any, constants: Mapping[str, Any], num_warps: int, num_stages: int = 1
    ) -> None:
        launches.add(launch_key(kernel.__name__, map(word_of, arguments), constants, num_warps, num_stages))

    with monkeypatch.context() as patch:
        patch.setattr(launching, "launch", note)
        yield launches


def attend(case: AttentionCase, *, num_kv_heads: int = 2, num_tokens: int = NUM_ROWS) -> None:
    dtype = DTYPES[case.dtype]
    stored = dtype if case.stored is None else STORED_TYPES[case.stored]
    shape = Shape(case.group, case.key_dim, case.value_dim, num_kv_heads)
    pools = [torch.zeros(2, BLOCK_SIZE, num_kv_heads, dim, dtype=stored) for dim in (case.key_dim, case.value_dim)]
    starts = torch.tensor([0, num_tokens], dtype=torch.int32)
    if case.is_decode:
        starts = torch.arange(num_tokens + 1, dtype=torch.int32)
    lens, tables = starts.diff(), torch.zeros(len(starts) - 1, 2, dtype=torch.int32)
    ends = torch.zeros(num_tokens, dtype=torch.int32) if "spans" in case.scores else None
    kernels = interpreted_kernels(H100_MULTIPROCESSORS if case.is_split else 0)
    tiles = kernels.plan_tiles(
        starts, lens, case.tile, group=case.group, num_kv_heads=num_kv_heads, num_tokens=num_tokens
    )
    kernels.attention(
        torch.zeros(num_tokens, case.group * num_kv_heads, case.key_dim, dtype=dtype),
        *pools,
        PagedIndices(starts, lens, tables, ends),
        tiles,
        rule_of(case.scores, shape),
        None if case.stored is None else KvScales(torch.ones(num_kv_heads), torch.ones(num_kv_heads)),
    )


def merge(case: MergeCase) -> None:
    attend(AttentionCase(case.dtype, case.group, case.value_dim, case.value_dim, case.is_decode, is_split=True))


def plan(case: PlanCase) -> None:
    tile = Tile(rows=4 * case.num_queries, places=64, num_warps=4, num_stages=1)
    starts = torch.arange(NUM_ROWS + 1, dtype=torch.int32)
    interpreted_kernels(1).plan_tiles(starts, starts.diff(), tile, group=4, num_kv_heads=1, num_tokens=NUM_ROWS)


def write(case: WriteCase) -> None:
    dtype, num_kv_heads = DTYPES[case.dtype], 2
    stored = dtype if case.stored is None else STORED_TYPES[case.stored]
    tables = None
    if case.turn != "none":
        cosines, sines = (
            torch.zeros(NUM_ROWS, case.rotary_dim, dtype=dtype),
            torch.zeros(NUM_ROWS, case.rotary_dim, dtype=dtype),
        )
        tables = RotaryTables(cosines, sines, is_interleaved=case.turn == "interleaved")
    interpreted_kernels(1).write_kv(
        torch.zeros(NUM_ROWS, case.group * num_kv_heads, case.key_dim, dtype=dtype),
        torch.zeros(NUM_ROWS, num_kv_heads, case.key_dim, dtype=dtype),
        torch.zeros(NUM_ROWS, num_kv_heads, case.value_dim, dtype=dtype),
        torch.zeros(1, BLOCK_SIZE, num_kv_heads, case.key_dim, dtype=stored),
        torch.zeros(1, BLOCK_SIZE, num_kv_heads, case.value_dim, dtype=stored),
        places_T=torch.arange(NUM_ROWS),
        tables=tables,
        scales=None if case.stored is None else KvScales(torch.ones(num_kv_heads), torch.ones(num_kv_heads)),
    )


def norm(case: NormCase) -> None:
    kernels, x = interpreted_kernels(1), torch.zeros(NUM_ROWS, case.width, dtype=DTYPES[case.dtype])
    factor = torch.ones(case.width)
    if case.has_residual:
        kernels.add_rms_norm(x, torch.zeros_like(x), factor, 1e-5)
    else:
        kernels.rms_norm(x, factor, 1e-5)


def gate(case: GateCase) -> None:
    halves = torch.zeros(2, NUM_ROWS, case.width, dtype=DTYPES[case.dtype])
    interpreted_kernels(1).gate_up(halves[0], halves[1], case.activation)


def scan(case: ScanCase) -> None:
    slots, lists, ones = (
        torch.zeros(NUM_ROWS).long(),
        IdLists(torch.zeros(1, 3).long(), torch.ones(1).long()),
        torch.ones,
    )
    changes = ScoreChanges(
        repetition=RepetitionChange(slots, lists, ones(1)) if "repetition" in case.changes else None,
        counts=CountChange(slots, lists, ones(1, 3), ones(1), ones(1)) if "counts" in case.changes else None,
        bias=BiasChange(slots, lists, ones(1, 3)) if "bias" in case.changes else None,
        mask=MaskChange(slots, torch.zeros(1, case.vocab_size, dtype=torch.bool)) if "mask" in case.changes else None,
        temperatures=Temperatures(slots, ones(1)) if "temperature" in case.changes else None,
    )
    logits_NV = torch.zeros(NUM_ROWS, case.vocab_size)
    interpreted_kernels(1).first_pass(logits_NV, changes, 30 if case.has_candidates else 0)


def add_adapter(case: LowRankCase) -> None:
    """Run a layer with as many inputs as outputs, so that one launch is that of the row."""
    cpu, dtype = torch.device("cpu"), DTYPES[case.dtype]
    tables = LowRankTables(["layer"], cpu)
    low = LowRank(torch.ones(1, case.width, dtype=dtype), torch.ones(case.width, 1, dtype=dtype), 1.0)
    tables.put(1, {"layer": LowRankTables.to_device(low, cpu)})
    interpreted_kernels(1).add_low_rank(
        torch.zeros(NUM_ROWS, case.width, dtype=dtype),
        torch.zeros(NUM_ROWS, case.width, dtype=dtype),
        tables.of("layer"),
        torch.ones(NUM_ROWS, dtype=torch.int32),
        max_rank=case.max_rank,
        is_decode=case.is_decode,
    )


def multiply(case: ExpertCase) -> None:
    """Multiply tensors without memory, because the matrices of all experts have gigabytes."""
    meta, dtype = torch.device("meta"), DTYPES[case.dtype]
    sizes = (case.num_inputs, case.num_outputs) if case.has_inputs_first else (case.num_outputs, case.num_inputs)
    order = ExpertOrder(
        case.tile,
        torch.empty(case.num_pairs, dtype=torch.int64, device=meta),
        torch.empty(case.num_experts, dtype=torch.int32, device=meta),
    )
    interpreted_kernels(1).expert_product(
        torch.empty(case.num_pairs // case.pairs_of_row, case.num_inputs, dtype=dtype, device=meta),
        torch.empty(case.num_experts, *sizes, dtype=dtype, device=meta),
        torch.empty(case.num_experts, case.num_outputs, dtype=dtype, device=meta) if case.has_bias else None,
        order,
        has_inputs_first=case.has_inputs_first,
    )


def make_noise(case: NoiseCase) -> None:
    ids_SC = torch.zeros(NUM_ROWS, case.num_ids).long()
    interpreted_kernels(1).gumbel(torch.zeros(NUM_ROWS, 2).long(), torch.zeros(NUM_ROWS).long(), ids_SC)


def unpack(case: UnpackCase) -> None:
    def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    batch = ForwardBatch(
        *(numbers(NUM_ROWS) for _ in range(3)),
        query_starts=numbers(NUM_ROWS + 1, dtype=torch.int32),
        context_lens_R=numbers(NUM_ROWS, dtype=torch.int32),
        block_tables_RB=numbers(NUM_ROWS, 4, dtype=torch.int32),
        logit_rows_N=numbers(NUM_ROWS),
        max_query_len=1,
        max_context_len=4 * BLOCK_SIZE,
        slots_R=numbers(NUM_ROWS),
        adapters_R=numbers(NUM_ROWS, dtype=torch.int32) if case.has_adapters else None,
        is_long_rope_T=numbers(NUM_ROWS, dtype=torch.bool) if case.has_two_rope_tables else None,
        rope_positions_3T=numbers(3, NUM_ROWS) if case.has_rope_positions else None,
    )
    interpreted_kernels(1).unpack_rows(
        numbers(99, dtype=torch.int32), numbers(1), batch, scratch_block=9, block_size=BLOCK_SIZE
    )


RUNS: Mapping[type, Callable[[Any], None]] = {
    AttentionCase: attend,
    MergeCase: merge,
    PlanCase: plan,
    WriteCase: write,
    NormCase: norm,
    GateCase: gate,
    ScanCase: scan,
    LowRankCase: add_adapter,
    ExpertCase: multiply,
    NoiseCase: make_noise,
    UnpackCase: unpack,
}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.kernel}, {variant.name}")
def test_a_row_of_the_table_is_what_is_launched(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    with noted_launches(monkeypatch) as launches:
        RUNS[type(variant.case)](variant.case)
    expected = launch_key(variant.kernel, variant.types, variant.constants, variant.num_warps, variant.num_stages)
    assert expected in launches, [launch for launch in launches if launch[0] == variant.kernel]
