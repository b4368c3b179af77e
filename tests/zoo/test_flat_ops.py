"""With native kernels no operation of a flat step waits for a tensor's values, and none gathers contexts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from textmill_shard.model.runner import ModelRunner

from tests.fakes.native_cases import native_cache_folder, native_kernels
from tests.fakes.paged_driver import PagedDriver
from tests.zoo.drive import ZooModel, load_zoo_model, make_zoo_model, prompts_of_zoo
from tests.zoo.entry import ZooEntry
from tests.zoo.flat_ops import FlatOps
from tests.zoo.table import FLAT


def watch(runner: ModelRunner) -> FlatOps:
    """Run a step of one chunk and one decode, and return its noted operations."""
    driver = PagedDriver(runner, num_blocks=32)
    _, short, long, _ = prompts_of_zoo()
    chunked, decoding = driver.start(long, max_new_tokens=1), driver.start(short, max_new_tokens=1)
    driver.step([(chunked, 20), (decoding, 4)])
    batch = driver.build([(decoding, 1), (chunked, 20)])
    if runner.facts.rope_border is not None:  # as the step loop says of each token
        batch = replace(batch, is_long_rope_T=torch.tensor([True, *[False] * 20]))
    pool = runner.kv_pool
    assert pool is not None
    with torch.inference_mode(), FlatOps([*pool.keys, *pool.values]) as seen:
        runner.forward(batch)
    return seen


@pytest.mark.parametrize("entry", FLAT, ids=lambda entry: entry.name)
def test_step_waits_for_no_values_and_gathers_no_contexts(entry: ZooEntry, tmp_path: Path) -> None:
    native_kernels()
    seen = watch(load_zoo_model(make_zoo_model(entry, tmp_path), native_cache_dir=native_cache_folder()))
    assert seen.pool_reads == []
    assert seen.host_reads == []


def test_reference_attention_is_seen_to_gather(tmp_path: Path) -> None:
    model: ZooModel = make_zoo_model(FLAT[0], tmp_path)
    seen = watch(load_zoo_model(model, native_cache_dir=None))
    assert "index_select" in seen.pool_reads
    assert "nonzero" in seen.host_reads
