"""The flags of overlap and graphs decide how steps run on a GPU, and a CPU has neither."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from textmill_shard.gpu_steps import graph_buckets, graph_trial, record_graphs, steps_overlap
from textmill_shard.model.decode_graphs import default_buckets
from textmill_shard.model.graph_recorder import CudaGraphRecorder
from textmill_shard.settings import ServeSettings, load_settings

RECORDER = CudaGraphRecorder()


def serve(*flags: str) -> ServeSettings:
    settings = load_settings(["serve", "--model-dir", "/models/tiny", "--uds-path", "/run/shard-0", *flags], {})
    assert isinstance(settings, ServeSettings)
    return settings


class Runner:
    """The facts of a model that count, and what it is asked to record."""

    def __init__(self, device: str = "cuda:0", *, has_fixed_launches: bool = True) -> None:
        self.device = torch.device(device)
        self.has_fixed_launches = has_fixed_launches
        self.facts = SimpleNamespace(layout="flat")
        self.asked: list[tuple[tuple[int, ...], dict[str, int]]] = []

    def record_graphs(self, recorder: object, buckets: tuple[int, ...], on_progress: Any, **sizes: int) -> bool:
        assert recorder is RECORDER
        self.asked.append((buckets, sizes))
        return True


def test_steps_of_a_gpu_overlap_unless_told_otherwise() -> None:
    runner: Any = Runner()
    assert steps_overlap(serve(), runner)
    assert not steps_overlap(serve("--no-overlap"), runner)
    cpu: Any = Runner("cpu")
    assert not steps_overlap(serve(), cpu)


@pytest.mark.parametrize(
    ("flags", "max_rows", "expected"),
    [
        ((), 30, default_buckets(30)),
        (("--cuda-graphs", "1,8,64"), 64, (1, 8, 64)),
        (("--cuda-graphs", "64,8,90,1"), 30, (1, 8, 30)),
        (("--cuda-graphs", "0"), 30, ()),
        (("--no-graphs",), 30, ()),
        (("--no-graphs", "--cuda-graphs", "4"), 30, ()),
    ],
)
def test_flags_choose_the_numbers_of_rows(flags: tuple[str, ...], max_rows: int, expected: tuple[int, ...]) -> None:
    gpu: Any = Runner()
    cpu: Any = Runner("cpu")
    assert graph_buckets(serve(*flags), gpu, max_rows) == expected
    assert graph_buckets(serve(*flags), cpu, max_rows) == ()


@pytest.mark.parametrize(("num_blocks", "most"), [(500, 40), (7, 7)])
@pytest.mark.parametrize("has_adapters", [False, True])
def test_steps_of_as_many_rows_as_slots_and_blocks_allow_are_recorded(
    num_blocks: int, most: int, has_adapters: bool
) -> None:
    runner: Any = Runner()
    settings = serve("--num-slots", "40", "--max-lora-rank", "24")
    record_graphs(settings, runner, RECORDER, lambda share: None, num_blocks=num_blocks, has_adapters=has_adapters)
    assert runner.asked == [(default_buckets(most), {"num_slots": 40, "adapter_rank": 24 if has_adapters else 0})]


@pytest.mark.parametrize(
    ("device", "flags", "warns"),
    [
        ("cuda:0", (), True),
        ("cuda:0", ("--no-graphs",), False),
        ("cuda:0", ("--cuda-graphs", "0"), False),
        ("cpu", (), False),
    ],
)
def test_a_model_whose_launches_change_has_no_graphs_and_says_so(
    device: str, flags: tuple[str, ...], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runner: Any = Runner(device, has_fixed_launches=False)
    with caplog.at_level(logging.WARNING):
        record_graphs(serve(*flags), runner, RECORDER, lambda share: None, num_blocks=9, has_adapters=False)
    assert runner.asked == []
    assert ("launched one by one" in caplog.text) == warns


@pytest.mark.parametrize(
    ("flags", "num_rows", "num_graphs"),
    [
        (("--cuda-graphs", "1,8,64", "--num-slots", "40"), 40, 3),
        (("--cuda-graphs", "1,8", "--num-slots", "40", "--lora-memory-bytes", "auto"), 8, 4),  # also with adapters
    ],
)
def test_all_graphs_count_for_the_memory_that_is_set_aside(
    flags: tuple[str, ...], num_rows: int, num_graphs: int
) -> None:
    runner: Any = Runner()
    trial = graph_trial(serve(*flags), runner, RECORDER)
    assert trial is not None
    assert (trial.recorder, trial.num_rows, trial.num_graphs) == (RECORDER, num_rows, num_graphs)
    assert graph_trial(serve(*flags, "--no-graphs"), runner, RECORDER) is None
