"""Ranks record and replay graphs together: exchanges stand in the graphs, and all ranks have graphs or none."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.graph_recorder import RecordedStep
from textmill_shard.model.runner import ModelRunner
from textmill_shard.native.ranks import RankRoom

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.fakes.thread_ranks import Meeting, ThreadRoom
from tests.fakes.tiny_models import make_tiny_llama

BLOCK_SIZE = 4
NUM_BLOCKS = 16
NUM_SLOTS = 4
NUM_RANKS = 2
WAIT_S = 60.0


@dataclass(frozen=True)
class Rank:
    """One of the ranks, which is a thread of this process."""

    runner: ModelRunner
    recorder: FakeGraphRecorder
    parallel: TensorParallel
    meeting: Meeting


def on_all(run: Callable[[int], Any]) -> list[Any]:
    """Return what a function gives for each rank. The calls run in threads, because they wait for one another."""
    with ThreadPoolExecutor(NUM_RANKS) as threads:
        return [future.result(WAIT_S) for future in [threads.submit(run, rank) for rank in range(NUM_RANKS)]]


def load(folder: Path) -> ModelRunner:
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE, num_slots=NUM_SLOTS)
    runner = load_model(options, lambda phase, share: None)
    runner.allocate_kv(NUM_BLOCKS)
    pool = runner.kv_pool
    assert pool is not None
    for tensor in (*pool.keys, *pool.values):
        tensor.zero_()
    return runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("ranks"), layers=2, seed=4)


@pytest.fixture
def ranks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Rank]:
    """Return ranks that have the whole model each, and bring the halves of its norms together."""
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    meeting = Meeting()
    found = []
    for rank in range(NUM_RANKS):
        room = RecordedKernels(ThreadRoom(meeting, rank))
        runner = load(folder)
        runner.parallel = TensorParallel(rank, NUM_RANKS, room=cast(RankRoom, room))
        for module in runner.modules():
            if "Norm" in type(module).__name__:
                module.forward = Halves(module.forward, runner.parallel)
        found.append(Rank(runner, FakeGraphRecorder(kernels, room), runner.parallel, meeting))
    return found


@dataclass(frozen=True)
class Halves:
    """A layer of which each rank computes a half. The ranks add the halves up."""

    forward: Callable[..., Any]
    parallel: TensorParallel

    def __call__(self, *args: Any) -> Any:
        found = self.forward(*args)
        if isinstance(found, tuple):  # of a sum and a norm the sum is the same on every rank
            return found[0], self.parallel.all_reduce(found[1] * 0.5)
        return self.parallel.all_reduce(found * 0.5)


def record(rank: Rank, check: Callable[[int, int], str] | None = None) -> bool:
    return rank.runner.record_graphs(rank.recorder, (1, 2, 4), lambda share: None, num_slots=NUM_SLOTS, check=check)


def rows(lengths: list[int]) -> DecodeRows:
    num_rows = len(lengths)
    return DecodeRows(
        slots_R=np.arange(num_rows),
        starts_R=np.array(lengths) - 1,
        tokens_R=np.arange(num_rows) + 7,
        block_tables_RB=np.arange(2 * num_rows, dtype=np.int32).reshape(num_rows, 2),
    )


def test_replays_of_two_ranks_give_the_logits_of_one(
    ranks: list[Rank], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    alone = load(folder)
    assert alone.record_graphs(FakeGraphRecorder(kernels), (4,), lambda share: None, num_slots=NUM_SLOTS)
    assert on_all(lambda number: record(ranks[number])) == [True, True]
    num_exchanges = len(ranks[0].meeting.sent_bytes)
    graphs = [runner.graphs for runner in (alone, *(rank.runner for rank in ranks))]
    for lengths in ([1, 1, 1], [2, 2, 2, 1], [3]):  # each row finds what the step before has written
        expected, *_ = (one.run(rows(lengths)).logits_NV for one in graphs[:1] if one is not None)

        def run(number: int, lengths: list[int] = lengths) -> torch.Tensor:
            found = graphs[1 + number]
            assert found is not None
            return found.run(rows(lengths)).logits_NV

        for logits_NV in on_all(run):
            assert torch.allclose(logits_NV, expected, atol=1e-5)
    assert len(ranks[0].meeting.sent_bytes) > num_exchanges


@pytest.mark.parametrize("bad_bucket", [4, 2, 1])
def test_all_ranks_stop_at_the_bucket_at_which_one_finds_a_fault(ranks: list[Rank], bad_bucket: int) -> None:
    """The steps of the next bucket exchange tensors, in which a rank that has stopped would be missing."""
    checked: list[list[int]] = [[], []]

    def check_of(number: int) -> Callable[[int, int], str]:
        def check(bucket: int, adapter: int) -> str:
            checked[number].append(bucket)
            return "other logits" if number == 1 and bucket == bad_bucket else ""

        return check

    assert on_all(lambda number: record(ranks[number], check_of(number))) == [False, False]
    assert checked[0] == checked[1] == [bucket for bucket in (4, 2, 1) if bucket >= bad_bucket]
    assert [rank.runner.graphs for rank in ranks] == [None, None]
    assert on_all(lambda number: ranks[number].parallel.min_int(number + 5, torch.device("cpu"))) == [5, 5]


@dataclass
class Narrow:
    """A layer that finds no memory for steps of more than `most_rows` rows, from its call number `start` on."""

    forward: Callable[..., Any]
    most_rows: int
    start: int
    num_calls: int = 0

    def __call__(self, x: torch.Tensor, *args: Any) -> Any:
        if x.shape[-2] > self.most_rows:
            self.num_calls += 1
            if self.num_calls > self.start:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return self.forward(x, *args)


class NarrowRecorder(FakeGraphRecorder):
    """Finds no memory for graphs of more than two rows."""

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        recorded = super().record(run)
        if len(recorded.output.logits_NV) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return recorded


@pytest.mark.parametrize("start", [0, 1, 2, None], ids=["logits", "step", "step of the recorder", "recording"])
def test_ranks_keep_the_buckets_for_which_each_of_them_has_memory(
    ranks: list[Rank], caplog: pytest.LogCaptureFixture, start: int | None
) -> None:
    """Rank 1 runs out of memory within a step, whose exchanges must not leave rank 0 waiting."""
    if start is None:
        ranks[1].recorder.__class__ = NarrowRecorder
    *_, last = (module for module in ranks[1].runner.modules() if "Norm" in type(module).__name__)
    last.forward = Narrow(last.forward, most_rows=2, start=1000 if start is None else start)
    assert on_all(lambda number: record(ranks[number])) == [True, True]
    kept = [rank.runner.graphs.recorded() for rank in ranks if rank.runner.graphs is not None]
    assert kept == [[1, 2], [1, 2]]
    told = [record for record in caplog.records if "steps of more than 2 requests" in record.getMessage()]
    assert sorted(vars(record)["reason"].split(":")[0] for record in told) == [
        "OutOfMemoryError",
        "memory ran out on another rank",
    ]

    def run(number: int) -> torch.Tensor:
        graphs = ranks[number].runner.graphs
        assert graphs is not None
        return graphs.run(rows([1, 1])).logits_NV

    first, second = on_all(run)
    assert torch.equal(first, second)
