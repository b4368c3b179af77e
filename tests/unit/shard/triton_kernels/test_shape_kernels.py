"""The stand-ins of the fake GPU give the shapes, types and strides of the kernels, and count as many launches."""

# T tokens, H query heads, K key/value heads, D key width, E value width

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.layers.low_rank_tables import LowRankTables
from textmill_shard.model.adapter import LowRank
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.model.score_changes import IdLists, RepetitionChange, ScoreChanges, Temperatures
from textmill_shard.triton_kernels import launching
from textmill_shard.triton_kernels.interface import DeviceKernels, ExpertOrder, LowRankTable, PagedIndices
from textmill_shard.triton_kernels.tiles import attention_tile, expert_tile

from tests.fakes.fake_gpu import GPU, FakeGpu, ShapeKernels
from tests.fakes.kernel_cases import interpreted_kernels
from tests.fakes.plain_kernels import H100_MULTIPROCESSORS

T, H, K, D, E = 6, 4, 2, 16, 24
WIDTH = 32  # of norms, MLPs and layers with adapters
BLOCK_SIZE, NUM_BLOCKS = 4, 5
Move = Callable[[torch.Tensor], torch.Tensor]
Call = Callable[[DeviceKernels, Move], Any]


def joined(*widths: int) -> list[torch.Tensor]:
    """Return parts of one product, whose rows do not lie one behind the other."""
    return list(torch.randn(T, sum(widths)).split(widths, dim=-1))


def heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = joined(H * D, K * D, K * E)
    heads_first = query.view(T, H, D).transpose(0, 1).contiguous()  # as transformers' code turns them
    return heads_first.transpose(0, 1), key.view(T, K, D), value.view(T, K, E)


def pools(move: Move, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [move(torch.zeros(NUM_BLOCKS, BLOCK_SIZE, K, width, dtype=dtype)) for width in (D, E)]


def write(kernels: DeviceKernels, move: Move, *, turns: bool, has_8_bits: bool) -> torch.Tensor:
    tables = RotaryTables(move(torch.randn(T, D)), move(torch.randn(T, D)), is_interleaved=False) if turns else None
    scales = KvScales(move(torch.ones(K)), move(torch.ones(K))) if has_8_bits else None
    written = pools(move, torch.float8_e5m2 if has_8_bits else torch.float32)
    return kernels.write_kv(*map(move, heads()), *written, places_T=move(torch.arange(T)), tables=tables, scales=scales)


def attend(kernels: DeviceKernels, move: Move, *, num_tokens: int) -> torch.Tensor:
    starts = torch.tensor([0, num_tokens], dtype=torch.int32)
    tile = attention_tile(itemsize=2, group=H // K, key_dim=D, value_dim=E, max_query_len=num_tokens)
    lens = move(torch.tensor([num_tokens], dtype=torch.int32))
    starts = move(starts)
    tiles = kernels.plan_tiles(starts, lens, tile, group=H // K, num_kv_heads=K, num_tokens=num_tokens)
    tables = torch.arange(NUM_BLOCKS, dtype=torch.int32).unsqueeze(0)
    indices = PagedIndices(starts, lens, move(tables))
    query_THD = torch.randn(H, num_tokens, D).transpose(0, 1)
    long = [move(torch.zeros(-(-num_tokens // BLOCK_SIZE) + NUM_BLOCKS, BLOCK_SIZE, K, width)) for width in (D, E)]
    return kernels.attention(move(query_THD), *long, indices, tiles, AttentionRule(scaling=1.0))


@cache
def real_table() -> LowRankTable:
    """Return the adapter of a layer. The fake GPU has no addresses."""
    tables = LowRankTables(["layer"], torch.device("cpu"))
    low = LowRank(torch.ones(2, WIDTH), torch.ones(WIDTH, 2), 1.0)
    tables.put(1, {"layer": LowRankTables.to_device(low, torch.device("cpu"))})
    return tables.of("layer")


def add_adapters(kernels: DeviceKernels, move: Move) -> torch.Tensor:
    real = real_table()
    table = LowRankTable(
        move(real.a_addresses_P), move(real.b_addresses_P), move(real.ranks_P), move(real.scales_P), real.low_ranks
    )
    out_TI = move(torch.zeros(T, WIDTH))
    places_T = move(torch.ones(T, dtype=torch.int32))
    kernels.add_low_rank(out_TI, move(joined(WIDTH, 3)[0]), table, places_T, max_rank=2, is_decode=True)
    return out_TI


def multiply_by_experts(kernels: DeviceKernels, move: Move, *, has_inputs_first: bool) -> torch.Tensor:
    weights = torch.randn(3, WIDTH, D) if has_inputs_first else torch.randn(3, D, WIDTH)
    tile = expert_tile(itemsize=4, num_pairs=2 * T, num_experts=3)
    order = ExpertOrder(tile, move(torch.arange(2 * T)), move(torch.tensor([4, 4, 2 * T], dtype=torch.int32)))
    x_NI = move(joined(WIDTH, 5)[0])
    return kernels.expert_product(x_NI, move(weights), None, order, has_inputs_first=has_inputs_first)


def scan(kernels: DeviceKernels, move: Move, *, is_changed: bool, num_candidates: int) -> Any:
    slots, lists = move(torch.tensor([0, -1])), IdLists(move(torch.ones(1, 3).long()), move(torch.ones(1).long()))
    changes = ScoreChanges()
    if is_changed:
        changes = ScoreChanges(
            repetition=RepetitionChange(slots, lists, move(torch.ones(1))),
            temperatures=Temperatures(slots, move(torch.ones(1))),
        )
    first = kernels.first_pass(move(torch.randn(2, 5003)[:, :5000]), changes, num_candidates)
    scan = first.scan
    of_scan = (scan.best_N, scan.not_finite_N, scan.log_mass_N)
    return [first.scores_NV, first.best_N, first.tempered_mass_N, first.candidates_NC, *of_scan]


def unpack(kernels: DeviceKernels, move: Move) -> torch.Tensor:
    rows = DecodeRows(
        slots_R=np.array([1]),
        starts_R=np.array([5]),
        tokens_R=np.array([7]),
        block_tables_RB=np.zeros((1, 2), dtype=np.int32),
    )
    numbers_n = [move(torch.zeros(T, dtype=torch.int64)) for _ in range(5)]
    batch = ForwardBatch(
        *numbers_n[:3],
        query_starts=move(torch.arange(T + 1, dtype=torch.int32)),
        context_lens_R=move(torch.ones(T, dtype=torch.int32)),
        block_tables_RB=move(torch.zeros(T, NUM_BLOCKS, dtype=torch.int32)),
        logit_rows_N=numbers_n[3],
        max_query_len=1,
        max_context_len=NUM_BLOCKS * BLOCK_SIZE,
        slots_R=numbers_n[4],
    )
    packed = move(torch.from_numpy(rows.pack()))
    kernels.unpack_rows(packed, move(torch.zeros(3).long()), batch, scratch_block=NUM_BLOCKS, block_size=BLOCK_SIZE)
    return batch.block_tables_RB


CALLS: dict[str, Call] = {
    "unpack": unpack,
    "write": lambda kernels, move: write(kernels, move, turns=False, has_8_bits=False),
    "write with turns": lambda kernels, move: write(kernels, move, turns=True, has_8_bits=False),
    "write of 8 bits": lambda kernels, move: write(kernels, move, turns=True, has_8_bits=True),
    "attention of one row, in parts": lambda kernels, move: attend(kernels, move, num_tokens=1),
    "attention of many rows": lambda kernels, move: attend(kernels, move, num_tokens=9000),
    "norm": lambda kernels, move: kernels.rms_norm(move(joined(WIDTH, 5)[0]), move(torch.ones(WIDTH)), 1e-5),
    "norm of heads": lambda kernels, move: kernels.rms_norm(move(heads()[0].unsqueeze(0)), move(torch.ones(D)), 1e-5),
    "sum and norm": lambda kernels, move: kernels.add_rms_norm(
        move(joined(WIDTH, 5)[0]), move(torch.ones(T, WIDTH)), move(torch.ones(WIDTH)), 1e-5
    ),
    "gate": lambda kernels, move: kernels.gate_up(*map(move, joined(WIDTH, WIDTH)), "silu"),
    "adapters": add_adapters,
    "experts": lambda kernels, move: multiply_by_experts(kernels, move, has_inputs_first=False),
    "experts with inputs first": lambda kernels, move: multiply_by_experts(kernels, move, has_inputs_first=True),
    "noise": lambda kernels, move: kernels.gumbel(
        move(torch.ones(T, 2).long()), move(torch.ones(T).long()), move(torch.ones(T, 9).long()[:, :7])
    ),
    "scan": lambda kernels, move: scan(kernels, move, is_changed=False, num_candidates=0),
    "scan with candidates": lambda kernels, move: scan(kernels, move, is_changed=False, num_candidates=7),
    "scan of changed scores": lambda kernels, move: scan(kernels, move, is_changed=True, num_candidates=0),
}


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the fake GPU of the form of another."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def forms(result: Any) -> list[Any]:
    tensors = list(result) if isinstance(result, tuple | list) else [result]
    return [None if one is None else (tuple(one.shape), one.dtype, one.stride()) for one in tensors]


@pytest.mark.parametrize("name", CALLS)
def test_a_stand_in_gives_what_the_kernel_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    launch = launching.launch

    def counted(kernel: Any, *arguments: Any, **options: Any) -> None:
        launched.append(str(kernel))
        # The work of many rows takes the interpreter long, and changes no form.
        if name != "attention of many rows":
            launch(kernel, *arguments, **options)

    monkeypatch.setattr(launching, "launch", counted)
    expected = forms(CALLS[name](interpreted_kernels(H100_MULTIPROCESSORS), lambda tensor: tensor))
    gpu = FakeGpu()
    with gpu:
        found = forms(CALLS[name](ShapeKernels(gpu), on_gpu))
    assert found == expected
    kernels = (
        "unpack_rows",
        "plan_tiles",
        "write_kv",
        "paged_attention",
        "merge_splits",
        "rms_norm",
        "add_rms_norm",
        "gate_up",
        "shrink",
        "expand",
        "expert_product",
    )
    assert sum(gpu.counts[kernel] for kernel in (*kernels, "gumbel", "scan_parts", "merge_parts")) == len(launched)


class Noted:
    """Notes which kernels are called."""

    def __init__(self, kernels: DeviceKernels) -> None:
        self._kernels = kernels
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._kernels, name)


def test_each_kernel_is_compared() -> None:
    gpu = FakeGpu()
    kernels: Any = Noted(ShapeKernels(gpu))
    real_table()
    with gpu:
        for call in CALLS.values():
            call(kernels, on_gpu)
    assert kernels.names == {
        name for name, value in vars(DeviceKernels).items() if callable(value) and not name.startswith("_")
    }
