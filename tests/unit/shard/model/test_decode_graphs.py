"""Decode steps as graphs, with a recorder that runs no Python at a replay, as CUDA runs none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from textmill_shard.layers.low_rank_tables import RESERVED_PLACES
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.adapter import AdapterWeights, LowRank
from textmill_shard.model.decode_graphs import DecodeGraphs, default_buckets
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.graph_recorder import RecordedStep
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.fakes.tiny_models import make_tiny_llama

BLOCK_SIZE = 4
NUM_BLOCKS = 32
NUM_SLOTS = 4


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelRunner, FakeGraphRecorder]:
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE, num_slots=NUM_SLOTS)
    runner = load_model(options, lambda phase, share: None)
    runner.allocate_kv(NUM_BLOCKS)
    return runner, FakeGraphRecorder(kernels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("graphs"), layers=2, seed=4)


def decode(lengths: list[int], *, first_block: int = 0, adapter: int | None = None) -> ForwardBatch:
    """Return a decode step in which row r has so many tokens, and two blocks of its own."""
    rows = [
        SyntheticRow(
            ids_n=torch.tensor([7 + row]),
            blocks=[first_block + 2 * row, first_block + 2 * row + 1],
            start=length - 1,
            adapter=adapter,
        )
        for row, length in enumerate(lengths)
    ]
    return synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=NUM_BLOCKS)


def filled(runner: ModelRunner) -> list[torch.Tensor]:
    """Write known numbers to the pool, and return copies of its tensors."""
    pool = runner.kv_pool
    assert pool is not None
    random = torch.Generator().manual_seed(8)
    for tensor in (*pool.keys, *pool.values):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    return [tensor.clone() for tensor in (*pool.keys, *pool.values)]


def decode_rows(lengths: list[int], *, first_block: int = 0, adapter: int | None = None) -> DecodeRows:
    """Return the rows of `decode` on the host."""
    num_rows = len(lengths)
    return DecodeRows(
        slots_R=np.arange(num_rows),
        starts_R=np.array(lengths) - 1,
        tokens_R=np.arange(num_rows) + 7,
        block_tables_RB=first_block + np.arange(2 * num_rows, dtype=np.int32).reshape(num_rows, 2),
        adapters_R=None if adapter is None else np.full(num_rows, adapter),
    )


def graphs_of(runner: ModelRunner) -> DecodeGraphs:
    graphs = runner.graphs
    assert graphs is not None
    return graphs


def test_graphs_give_what_steps_give_and_write_where_steps_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, recorder = load(folder, monkeypatch)
    plain, _ = load(folder, monkeypatch)
    shares: list[float] = []
    with caplog.at_level("INFO"):
        assert runner.record_graphs(recorder, (1, 2, 4), shares.append, num_slots=NUM_SLOTS)
    assert shares == [1 / 3, 2 / 3, 1.0]
    assert "decode steps recorded as graphs" in caplog.text
    filled(runner)
    filled(plain)
    num_replays = recorder.num_replays
    # The second step is longer than the third, whose last row is padding in the place of an earlier row.
    for lengths in ([3, 8, 1, 5], [4, 4], [2, 7, 6], [1]):
        found, expected = graphs_of(runner).run(decode_rows(lengths)), plain.forward(decode(lengths))
        assert torch.allclose(found.logits_NV, expected.logits_NV, atol=1e-5)
        assert runner.kv_pool is not None
        assert plain.kv_pool is not None
        for mine, other in zip(
            (*runner.kv_pool.keys, *runner.kv_pool.values), (*plain.kv_pool.keys, *plain.kv_pool.values), strict=True
        ):
            assert torch.allclose(mine[:NUM_BLOCKS], other[:NUM_BLOCKS], atol=1e-5)
    assert recorder.num_replays == num_replays + 4


def test_logits_of_a_step_outlive_the_next_replay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, recorder = load(folder, monkeypatch)
    assert runner.record_graphs(recorder, (2,), lambda share: None, num_slots=NUM_SLOTS)
    filled(runner)  # memory that nobody has written may hold NaN, which equals nothing
    first = graphs_of(runner).run(decode_rows([3, 5])).logits_NV
    before = first.clone()
    graphs_of(runner).run(decode_rows([1, 2], first_block=8))
    assert torch.equal(first, before)


def test_graphs_of_all_buckets_write_their_logits_to_one_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, recorder = load(folder, monkeypatch)
    assert runner.record_graphs(recorder, (1, 2, 4), lambda share: None, num_slots=NUM_SLOTS)
    seated = [graphs_of(runner).seat(decode_rows([3] * count)) for count in (1, 2, 3, 4)]
    logits = [one.recorded.output.logits_NV for one in seated if one is not None]
    assert [len(one) for one in logits] == [1, 2, 4, 4]
    assert len({one.untyped_storage().data_ptr() for one in logits}) == 1


def test_the_first_step_of_a_graph_writes_to_the_scratch_block_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording runs the step over memory without rows, while blocks may hold prefixes of an epoch before."""
    runner, recorder = load(folder, monkeypatch)
    before = filled(runner)
    assert runner.record_graphs(recorder, (2,), lambda share: None, num_slots=NUM_SLOTS, check=lambda *_: "")
    assert runner.kv_pool is not None
    for tensor, old in zip((*runner.kv_pool.keys, *runner.kv_pool.values), before, strict=True):
        assert torch.equal(tensor[:NUM_BLOCKS], old[:NUM_BLOCKS])


def test_no_graph_holds_more_rows_wider_tables_adapters_and_another_pool(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, recorder = load(folder, monkeypatch)
    assert runner.record_graphs(recorder, (1, 2), lambda share: None, num_slots=NUM_SLOTS)
    graphs = graphs_of(runner)
    rows = decode_rows([2])
    wide = np.zeros((1, graphs.sizes.table_width + 1), dtype=np.int32)
    assert graphs.seat(rows) is not None
    assert graphs.seat(decode_rows([3, 8, 1])) is None
    assert graphs.seat(decode_rows([2], adapter=1)) is None
    assert graphs.seat(replace(rows, block_tables_RB=wide)) is None
    assert graphs.seat(replace(rows, is_long_rope_R=np.array([True]))) is None
    assert graphs.seat(replace(rows, rope_deltas_R=np.array([-2]))) is None
    runner.allocate_kv(NUM_BLOCKS)  # the graphs know the addresses of the old pool
    assert runner.graphs is None


def adapter_of(runner: ModelRunner, *, rank: int, seed: int, of: str = "") -> AdapterWeights:
    """Return an adapter whose products are as large as the outputs that they change, of the layers that have a name."""
    random = torch.Generator().manual_seed(seed)
    modules = {
        path: LowRank(
            a_rI=torch.randn(rank, part.in_features, generator=random) / part.in_features**0.5,
            b_Or=torch.randn(part.out_features, rank, generator=random) / rank**0.5,
            scale=0.5,
        )
        for path, part in runner.targets.linears.items()
        if of in path
    }
    assert modules
    return AdapterWeights(digest=bytes([seed]) * 16, modules=modules, max_rank=rank)


def put(runner: ModelRunner, place: int, weights: AdapterWeights) -> None:
    runner.adapters.put(place, runner.adapters.prepare(weights))


def check_adapted(runner: ModelRunner, plain: ModelRunner, places: list[int]) -> torch.Tensor:
    """Compare a step by its graph with the step of a model without graphs, and return the logits."""
    lengths = [3, 8, 1, 5][: len(places)]
    rows = replace(decode_rows(lengths), adapters_R=np.array(places, dtype=np.int32))
    batch = decode(lengths)
    adapted = replace(batch, adapters_R=torch.tensor(places, dtype=torch.int32), adapters_on_host=tuple(places))
    found, expected = graphs_of(runner).run(rows).logits_NV, plain.forward(adapted).logits_NV
    assert torch.allclose(found, expected, atol=1e-5)
    return found


def test_graphs_find_adapters_that_come_and_go_after_the_recording(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, recorder = load(folder, monkeypatch)
    plain, _ = load(folder, monkeypatch)
    shares: list[float] = []
    with caplog.at_level("INFO"):
        assert runner.record_graphs(recorder, (2, 4), shares.append, num_slots=NUM_SLOTS, adapter_rank=12)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    [recorded] = [record for record in caplog.records if record.message == "decode steps recorded as graphs"]
    assert vars(recorded)["with_adapters"]
    filled(runner)
    filled(plain)
    num_replays = recorder.num_replays
    for one in (runner, plain):
        put(one, 1, adapter_of(one, rank=3, seed=1))
        put(one, 2, adapter_of(one, rank=12, seed=2, of="q_proj"))
    first = check_adapted(runner, plain, [1, 0, 2])  # a row of padding too
    assert not torch.allclose(first, graphs_of(runner).run(decode_rows([3, 8, 1])).logits_NV, atol=1e-2)
    check_adapted(runner, plain, [2, 2, 1, 0])
    for one in (runner, plain):
        one.adapters.remove(1)
        put(one, 1, adapter_of(one, rank=7, seed=3, of="down_proj"))
    second = check_adapted(runner, plain, [1, 0, 2])
    assert not torch.allclose(second[0], first[0], atol=1e-2)
    assert torch.allclose(second[1:], first[1:], atol=1e-5)
    assert recorder.num_replays == num_replays + 4
    # Rows without adapters have the graph without adapters, which has fewer launches.
    assert recorder.num_operations[0] == recorder.num_operations[1] < recorder.num_operations[2]


def test_graphs_that_do_not_know_where_adapters_lie_are_let_go_with_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, recorder = load(folder, monkeypatch)
    assert runner.record_graphs(recorder, (2,), lambda share: None, num_slots=NUM_SLOTS, adapter_rank=4)
    adapted = replace(decode_rows([2]), adapters_R=np.array([1], dtype=np.int32))
    put(runner, RESERVED_PLACES - 1, adapter_of(runner, rank=1, seed=1))
    assert graphs_of(runner).seat(adapted) is not None
    put(runner, RESERVED_PLACES, adapter_of(runner, rank=1, seed=2))
    assert graphs_of(runner).seat(adapted) is None
    assert graphs_of(runner).seat(adapted) is None
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "tables have moved" in warning.message
    assert graphs_of(runner).seat(decode_rows([2])) is not None


def test_steps_with_adapters_alone_are_launched_where_their_graph_differs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, recorder = load(folder, monkeypatch)
    kernels: Any = runner.device_scans
    add_low_rank, calls = kernels.add_low_rank, iter(range(10**6))

    def add_wrongly(out_TO: torch.Tensor, *args: Any, **sizes: Any) -> None:
        add_low_rank(out_TO, *args, **sizes)
        out_TO += next(calls)

    monkeypatch.setattr(kernels, "add_low_rank", add_wrongly, raising=False)
    assert runner.record_graphs(recorder, (2,), lambda share: None, num_slots=NUM_SLOTS, adapter_rank=4)
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "steps with adapters are launched one by one" in warning.message
    assert "gives other logits as a graph" in vars(warning)["reason"]
    assert graphs_of(runner).seat(decode_rows([2], adapter=1)) is None
    assert graphs_of(runner).seat(decode_rows([2])) is not None


def test_the_second_input_finds_a_graph_that_forgets_the_ids_of_the_slots(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first input says the ids of its rows. Only the second one takes the ids that the slots sampled last."""
    runner, recorder = load(folder, monkeypatch)
    kernels: Any = runner.device_scans
    unpack = kernels.unpack_rows

    def forget(packed: torch.Tensor, last_ids_S: torch.Tensor, batch: ForwardBatch, **sizes: int) -> None:
        unpack(packed, torch.zeros_like(last_ids_S), batch, **sizes)

    monkeypatch.setattr(kernels, "unpack_rows", forget, raising=False)
    assert not runner.record_graphs(recorder, (2,), lambda share: None, num_slots=NUM_SLOTS)
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "a step of 1 rows gives other logits as a graph" in vars(warning)["reason"]


class _Counter:
    """Adds the number of its calls, which a recording keeps for ever."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward
        self._num_calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self._num_calls += 1
        result: torch.Tensor = self._forward(x) + float(self._num_calls)
        return result


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda forward: lambda x: forward(x) * (1.0 if x.sum().item() else 2.0), "HostReadWhileRecording"),
        (_Counter, "a step of 2 rows gives other logits as a graph"),
        (lambda forward: lambda x: forward(x) * torch.nan, "gives other logits as a graph, by nan"),
    ],
    ids=["read on the host", "number of Python", "NaN"],
)
def test_a_model_that_no_graph_holds_runs_launch_by_launch_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spoil: Any, reason: str
) -> None:
    runner, recorder = load(folder, monkeypatch)
    norm = next(module for module in runner.modules() if "Norm" in type(module).__name__)
    norm.forward = spoil(norm.forward)
    assert not runner.record_graphs(recorder, (1, 2), lambda share: None, num_slots=NUM_SLOTS)
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "launched one by one" in warning.message
    assert reason in vars(warning)["reason"]
    assert runner.graphs is None


def test_a_model_that_rounds_by_the_number_of_rows_has_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries choose a kernel by the sizes of a product, and experts are chosen by the rounded result."""
    runner, recorder = load(folder, monkeypatch)
    norm = next(module for module in runner.modules() if "Norm" in type(module).__name__)
    forward = norm.forward
    norm.forward = lambda x: forward(x) * (1.0 + 0.1 * x.shape[-2])
    assert runner.record_graphs(recorder, (1, 2, 4), lambda share: None, num_slots=NUM_SLOTS, adapter_rank=4)


class NarrowRecorder(FakeGraphRecorder):
    """Finds no memory for the graphs of some buckets."""

    def __init__(self, *kernels: RecordedKernels, too_large: tuple[int, ...]) -> None:
        super().__init__(*kernels)
        self._too_large = too_large

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        recorded = super().record(run)
        if len(recorded.output.logits_NV) in self._too_large:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return recorded


@pytest.mark.parametrize(
    ("too_large", "kept", "told"),
    [
        ((4,), [1, 2], "steps of more than 2 requests are launched one by one"),
        ((4, 2), [1], "steps of more than 1 requests are launched one by one"),
        ((2,), [4], "steps of fewer than 4 requests are padded"),
    ],
)
@pytest.mark.parametrize("adapter_rank", [0, 4])
def test_buckets_for_which_memory_suffices_are_kept_with_a_warning(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    too_large: tuple[int, ...],
    kept: list[int],
    told: str,
    adapter_rank: int,
) -> None:
    runner, _ = load(folder, monkeypatch)
    plain, _ = load(folder, monkeypatch)
    kernels: Any = runner.device_scans
    recorder = NarrowRecorder(kernels, too_large=too_large)
    assert runner.record_graphs(recorder, (1, 2, 4), lambda share: None, num_slots=NUM_SLOTS, adapter_rank=adapter_rank)
    graphs = graphs_of(runner)
    assert graphs.recorded() == kept
    assert graphs.recorded(has_adapters=True) == (kept if adapter_rank else [])
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert told in warnings[0].getMessage()
    assert "OutOfMemoryError" in vars(warnings[0])["reason"]
    assert (graphs.seat(decode_rows([2] * 3)) is not None) == (kept[-1] == 4)
    filled(runner)
    filled(plain)
    lengths = [3, 8][: kept[-1]]
    expected = plain.forward(decode(lengths))
    assert torch.allclose(graphs.run(decode_rows(lengths)).logits_NV, expected.logits_NV, atol=1e-5)


def test_no_memory_for_any_graph_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, _ = load(folder, monkeypatch)
    kernels: Any = runner.device_scans
    recorder = NarrowRecorder(kernels, too_large=(1, 2))
    assert not runner.record_graphs(recorder, (1, 2), lambda share: None, num_slots=NUM_SLOTS)
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "CUDA out of memory" in vars(warning)["reason"]
    assert runner.graphs is None


def test_buckets_leave_little_padding() -> None:
    assert default_buckets(1) == (1,)
    assert default_buckets(30) == (1, 2, 4, 8, 16, 24, 30)
    assert default_buckets(64)[-2:] == (56, 64)
    assert default_buckets(256)[-2:] == (240, 256)
    assert default_buckets(300)[-3:] == (256, 288, 300)
