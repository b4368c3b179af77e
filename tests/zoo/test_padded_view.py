"""The padded view of contexts of uneven lengths, over blocks that other requests have used before."""

from pathlib import Path

import pytest
import torch
from textmill_shard.model.runner import ModelRunner

from tests.fakes.paged_driver import PagedDriver
from tests.zoo.drive import ZooModel, load_zoo_model, make_zoo_model, reference_logits
from tests.zoo.entry import TOLERANCE
from tests.zoo.padded import PADDED

LONG = [(7 * index + 3) % 256 for index in range(30)]
SHORT = [(5 * index + 1) % 256 for index in range(6)]


@pytest.fixture(params=["bloom", "gptj"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ZooModel:
    torch.set_num_threads(1)
    return make_zoo_model(next(entry for entry in PADDED if entry.name == request.param), tmp_path)


@pytest.fixture
def runner(model: ZooModel) -> ModelRunner:
    return load_zoo_model(model, native_cache_dir=None)


def assert_close(logits_V: torch.Tensor, model: ZooModel, tokens: list[int]) -> None:
    expected_TV = reference_logits(model.reference, tokens)
    assert float((logits_V - expected_TV[-1]).abs().max() / expected_TV.abs().max()) <= TOLERANCE


def test_what_earlier_owners_left_in_the_pool_does_not_leak(model: ZooModel, runner: ModelRunner) -> None:
    driver = PagedDriver(runner, num_blocks=24)
    assert runner.kv_pool is not None
    for tensor in (*runner.kv_pool.keys, *runner.kv_pool.values):
        tensor.fill_(torch.nan)
    long, short = driver.start(LONG, max_new_tokens=2), driver.start(SHORT, max_new_tokens=2)
    driver.step([(long, 29), (short, 5)])
    driver.step([(short, 1), (long, 1)])
    assert_close(short.logits[5], model, SHORT)
    assert_close(long.logits[29], model, LONG)


def test_blocks_of_a_shared_prefix_are_read_as_they_are(model: ZooModel, runner: ModelRunner) -> None:
    driver = PagedDriver(runner, num_blocks=24)
    first = driver.start(LONG, max_new_tokens=2)
    driver.step([(first, 30)])
    second = driver.start([*LONG[:12], 9, 8, 7], max_new_tokens=2)
    second.blocks[: 12 // driver.block_size] = first.blocks[: 12 // driver.block_size]
    second.num_computed = 12
    driver.step([(second, 3)])
    assert_close(second.logits[14], model, second.tokens)


def test_prompt_log_probabilities_come_from_hidden_states_in_the_order_of_the_batch(runner: ModelRunner) -> None:
    assert runner.facts.can_project
    driver = PagedDriver(runner, num_blocks=24)
    long, short = driver.start(LONG, max_new_tokens=2), driver.start(SHORT, max_new_tokens=2)
    driver.step([(long, 10), (short, 5)])
    batch = driver.build([(long, 7), (short, 1)], all_logits=True)
    output = runner.forward(batch, wants_hidden=True)
    assert output.hidden_TD is not None
    torch.testing.assert_close(runner.project(output.hidden_TD), output.logits_NV, rtol=1e-5, atol=1e-5)
