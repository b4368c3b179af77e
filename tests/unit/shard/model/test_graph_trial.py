"""What graphs keep is measured by recording two of them, before keys and values get the rest of the memory."""

from pathlib import Path
from typing import Any

import pytest
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.graph_trial import GraphTrial, graph_bytes
from textmill_shard.model.runner import ModelRunner

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.fakes.tiny_models import make_tiny_llama

NUM_SLOTS = 8


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGraphRecorder:
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    return FakeGraphRecorder(kernels)


@pytest.fixture
def runner(tmp_path: Path, recorder: FakeGraphRecorder) -> ModelRunner:
    options = LoadOptions(model_dir=make_tiny_llama(tmp_path), dtype="float32", block_size=4, num_slots=NUM_SLOTS)
    runner = load_model(options, lambda phase, share: None)
    runner.allocate_kv(0)  # as while the largest step is measured
    return runner


@pytest.mark.parametrize(
    ("num_rows", "num_graphs", "taken", "expected"),
    [
        (8, 5, [100, 1100, 1150], 1000 + 4 * 50),
        (8, 5, [100, 1100, 1090], 1000),  # another process has given back
        (1, 1, [100, 1100], 1000),
    ],
)
def test_each_further_graph_counts_as_the_second_one(
    runner: ModelRunner,
    recorder: FakeGraphRecorder,
    monkeypatch: pytest.MonkeyPatch,
    num_rows: int,
    num_graphs: int,
    taken: list[int],
    expected: int,
) -> None:
    monkeypatch.setattr("textmill_shard.model.graph_trial.taken_bytes", lambda device: taken.pop(0))
    trial = GraphTrial(recorder, num_rows=num_rows, num_graphs=num_graphs)
    assert graph_bytes(runner, trial, num_slots=NUM_SLOTS) == expected
    assert len(recorder.num_operations) == (2 if num_rows > 1 else 1)
    assert runner.graphs is None


def test_a_model_that_no_graph_holds_keeps_no_graph(runner: ModelRunner, recorder: FakeGraphRecorder) -> None:
    norm = next(module for module in runner.modules() if "Norm" in type(module).__name__)
    forward = norm.forward
    norm.forward = lambda x: forward(x) * (1.0 if x.sum().item() else 2.0)
    trial = GraphTrial(recorder, num_rows=8, num_graphs=4)
    assert graph_bytes(runner, trial, num_slots=NUM_SLOTS) == 0
