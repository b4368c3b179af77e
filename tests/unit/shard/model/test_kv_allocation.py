"""A pool that finds no memory on one of the ranks is made smaller on all of them, with a warning."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import NotEnoughMemory
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.kv_allocation import allocate_planned_kv
from textmill_shard.model.memory import KvMemoryPlan
from textmill_shard.model.runner import ModelRunner
from textmill_shard.native.ranks import RankRoom

from tests.fakes.thread_ranks import Meeting, ThreadRoom
from tests.fakes.tiny_models import make_tiny_llama

WAIT_S = 60.0


class NarrowRunner(ModelRunner):
    """A runner whose device has memory for so many blocks."""

    most_blocks = 1 << 30
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def allocate_kv(self, num_blocks: int) -> None:
        if num_blocks > self.most_blocks:
            raise self.error
        super().allocate_kv(num_blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("pools"))


def make(folder: Path, parallel: TensorParallel | None = None) -> NarrowRunner:
    loaded = load_model(LoadOptions(model_dir=folder, dtype="float32", block_size=4), lambda phase, share: None)
    loaded.__class__ = NarrowRunner
    assert isinstance(loaded, NarrowRunner)
    if parallel is not None:
        loaded.parallel = parallel
    return loaded


def plan_of(num_blocks: int, runner: ModelRunner) -> KvMemoryPlan:
    return KvMemoryPlan(
        num_blocks=num_blocks,
        weight_bytes=0,
        step_bytes=0,
        step_s=0.0,
        kv_bytes=(num_blocks + 1) * runner.kv_bytes_per_block(),
        adapter_bytes=0,
        encode_s_per_element=0.0,
        memory_bytes=0,
    )


def test_a_pool_that_fits_is_made_as_planned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = make(folder)
    plan = plan_of(20, runner)
    assert allocate_planned_kv(runner, plan) == plan
    assert runner.kv_pool is not None
    assert runner.kv_pool.num_blocks == 20
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_all_ranks_make_the_pool_for_which_each_of_them_has_memory(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = Meeting()
    runners = [
        make(folder, TensorParallel(rank, 2, room=cast(RankRoom, ThreadRoom(meeting, rank)))) for rank in range(2)
    ]
    runners[1].most_blocks = 17
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(allocate_planned_kv, runner, plan_of(20, runner)) for runner in runners]
        plans = [call.result(WAIT_S) for call in calls]
    for runner, plan in zip(runners, plans, strict=True):
        assert plan.num_blocks == 16  # 20, 18, 16
        assert runner.kv_pool is not None
        assert runner.kv_pool.num_blocks == 16
        assert plan.kv_bytes == runner.kv_pool.num_bytes
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 4
    assert sum("memory ran out on another rank" in text for text in told) == 2
    assert all("72 tokens are tried" in text or "64 tokens are tried" in text for text in told)


def test_memory_for_no_block_ends_the_start(folder: Path) -> None:
    runner = make(folder)
    runner.most_blocks = 0
    with pytest.raises(NotEnoughMemory, match="not even one block"):
        allocate_planned_kv(runner, plan_of(20, runner))


def test_another_fault_is_no_matter_of_size(folder: Path) -> None:
    runner = make(folder)
    runner.most_blocks, runner.error = 0, RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        allocate_planned_kv(runner, plan_of(20, runner))
