"""A step that does not fit is made smaller, and what is said of it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import NotEnoughMemory, UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.memory import KvMemoryOptions
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.step_size import plan_fitting_step
from textmill_shard.native.ranks import RankRoom

from tests.fakes.tiny_models import make_tiny_llama


class NarrowRunner(ModelRunner):
    """A runner whose forward pass finds memory for a step of at most `most_tokens` tokens."""

    most_tokens = 1 << 30
    seen: tuple[int, ...] = ()
    error: Exception = MemoryError("no memory for the step")

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        num_tokens = len(batch.input_ids_T)
        self.seen = (*self.seen, num_tokens)
        if num_tokens > self.most_tokens:
            raise self.error
        return super().forward(batch, wants_hidden)


@pytest.fixture
def runner(tmp_path: Path) -> NarrowRunner:
    folder = make_tiny_llama(tmp_path / "llama")
    loaded = load_model(LoadOptions(model_dir=folder, dtype="float32", block_size=4), lambda phase, share: None)
    loaded.__class__ = NarrowRunner
    assert isinstance(loaded, NarrowRunner)
    return loaded


OPTIONS = KvMemoryOptions(max_step_tokens=1024, num_slots=4, memory_fraction=0.05)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory for the step"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 bytes"),
        NotEnoughMemory("leaves 0 bytes"),
    ],
    ids=["native", "torch", "share"],
)
def test_step_without_memory_is_halved_until_it_fits(
    error: Exception, runner: NarrowRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner.most_tokens, runner.error = 300, error
    plan, kept = plan_fitting_step(runner, OPTIONS, is_fixed=False)
    assert kept == replace(OPTIONS, max_step_tokens=256)
    assert plan.num_blocks > 0
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.partition(" does not fit")[0] for text in told] == ["a step of 1024 tokens", "a step of 512 tokens"]
    assert "steps of 256 tokens are tried" in told[-1]


def test_smallest_step_that_does_not_fit_ends_the_start(runner: NarrowRunner) -> None:
    runner.most_tokens = 10
    with pytest.raises(MemoryError):
        plan_fitting_step(runner, OPTIONS, is_fixed=False)
    assert runner.seen[-1] == 128


def test_steps_stay_as_large_as_the_slots(runner: NarrowRunner) -> None:
    runner.most_tokens = 10
    with pytest.raises(MemoryError):
        plan_fitting_step(runner, replace(OPTIONS, num_slots=600), is_fixed=False)
    assert min(runner.seen) >= 512  # a CPU tries at most 512 tokens


def test_step_that_the_operator_has_set_is_kept(runner: NarrowRunner) -> None:
    runner.most_tokens = 300
    with pytest.raises(MemoryError):
        plan_fitting_step(runner, OPTIONS, is_fixed=True)
    assert len(runner.seen) == 1


def test_other_errors_are_no_matter_of_size(runner: NarrowRunner) -> None:
    runner.most_tokens, runner.error = 300, UnsupportedModelError("no such layer")
    with pytest.raises(UnsupportedModelError):
        plan_fitting_step(runner, OPTIONS, is_fixed=False)
    assert len(runner.seen) == 1


def test_memory_for_nothing_is_said_as_before(runner: NarrowRunner) -> None:
    with pytest.raises(NotEnoughMemory, match="leaves 0 bytes"):
        plan_fitting_step(runner, replace(OPTIONS, memory_fraction=1e-9), is_fixed=False)


class _Twice:
    """A room in which two ranks bring equal tensors."""

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([tensor, tensor])


@pytest.mark.parametrize(
    ("error", "tokens"),
    [(NotEnoughMemory("leaves 0 bytes"), 256), (MemoryError("no memory for the step"), None)],
    ids=["too little is left", "memory runs out within a step"],
)
def test_several_ranks_take_a_smaller_step_where_all_of_them_find_too_little_left(
    error: Exception, tokens: int | None, runner: NarrowRunner
) -> None:
    runner.parallel = TensorParallel(rank=1, world_size=2, room=cast(RankRoom, _Twice()))
    runner.most_tokens, runner.error = 300, error
    if tokens is None:
        with pytest.raises(MemoryError):
            plan_fitting_step(runner, OPTIONS, is_fixed=False)
        return
    _, kept = plan_fitting_step(runner, OPTIONS, is_fixed=False)
    assert kept.max_step_tokens == tokens
