"""The number of KV blocks follows from the limits that the operator sets."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from textmill_shard.errors import ModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.memory import UNBOUNDED_TOKENS, KvMemoryOptions, plan_kv_memory
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.system_memory import total_memory_bytes

from tests.fakes.tiny_models import make_tiny_llama
from tests.zoo.drive import make_zoo_model
from tests.zoo.encoders import ENCODERS
from tests.zoo.image_drive import make_image_model
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.states import STATE


@pytest.fixture
def runner(tmp_path: Path) -> ModelRunner:
    folder = make_tiny_llama(tmp_path / "llama", max_position_embeddings=24)
    return load_model(LoadOptions(model_dir=folder, dtype="float32", block_size=4), lambda phase, share: None)


def test_given_bytes_are_divided_into_blocks_and_one_for_scratch(runner: ModelRunner) -> None:
    budget = 10 * runner.kv_bytes_per_block() + 7
    plan = plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=4, kv_cache_bytes=budget))
    assert plan.num_blocks == 9
    assert plan.kv_bytes == 10 * runner.kv_bytes_per_block() <= budget


def test_share_of_memory_leaves_room_for_weights_and_the_largest_step(runner: ModelRunner) -> None:
    plan = plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01))
    allowed = total_memory_bytes(torch.device("cpu")) * 0.01
    assert plan.weight_bytes + plan.step_bytes + plan.kv_bytes <= allowed
    assert plan.num_blocks > 0
    # Logits of every slot: model dtype, float32 and a float32 copy.
    assert plan.step_bytes >= 4 * runner.facts.vocab_size * 12


def test_two_fifths_of_the_ram_are_filled_at_most_unless_told_otherwise(runner: ModelRunner) -> None:
    plan = plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=4))
    used = plan.weight_bytes + plan.step_bytes + plan.kv_bytes
    assert 0 < used <= 0.4 * total_memory_bytes(torch.device("cpu"))


def test_token_limit_caps_the_blocks(runner: ModelRunner) -> None:
    options = KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01, max_kv_tokens=41)
    assert plan_kv_memory(runner, options).num_blocks == 11


def test_too_little_memory_says_what_two_blocks_take(runner: ModelRunner) -> None:
    budget = 2 * runner.kv_bytes_per_block() - 1
    with pytest.raises(
        ModelError, match=rf"--kv-cache-bytes {budget} leaves {budget} bytes.*two blocks take {budget + 1}"
    ):
        plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=4, kv_cache_bytes=budget))


@pytest.mark.parametrize(("name", "longest"), [("t5", 64), ("bart", 40)])
def test_an_encoder_needs_room_for_its_longest_text_beside_every_slot(name: str, longest: int, tmp_path: Path) -> None:
    entry = next(entry for entry in ENCODERS if entry.name == name)
    make_zoo_model(replace(entry, config={**entry.config, "max_position_embeddings": 40}), tmp_path)
    options = LoadOptions(model_dir=tmp_path, dtype="float32", block_size=4, num_slots=3)
    runner = load_model(options, lambda phase, share: None)
    plan = plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=300, memory_fraction=0.02))
    # One layer's keys and values of all slots, twice, and their logits.
    width = runner.facts.kv_specs[0].elements_per_token
    assert plan.step_bytes >= 300 * (2 * longest * width * 4 + runner.facts.vocab_size * 12)
    assert plan.step_bytes < 1.5 * 300 * (2 * 64 * width * 4 + runner.facts.vocab_size * 12)
    assert plan.num_blocks > 0


def test_a_model_without_keys_and_values_has_blocks_that_only_count_tokens(tmp_path: Path) -> None:
    make_zoo_model(next(entry for entry in STATE if entry.name == "mamba"), tmp_path)
    options = LoadOptions(model_dir=tmp_path, dtype="float32", block_size=4, num_slots=3)
    runner = load_model(options, lambda phase, share: None)
    assert runner.facts.state_bytes > 0
    plan = plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=3, memory_fraction=0.01))
    assert plan.num_blocks == 3 * -(-(runner.facts.max_model_tokens or UNBOUNDED_TOKENS) // 4)
    assert plan.kv_bytes == 0


def test_memory_of_adapters_is_set_aside_before_the_blocks_are_counted(runner: ModelRunner) -> None:
    share = KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01)
    without = plan_kv_memory(runner, share)
    adapter_bytes = 100 * runner.kv_bytes_per_block()
    beside = plan_kv_memory(runner, replace(share, adapter_bytes=adapter_bytes))
    assert (without.adapter_bytes, beside.adapter_bytes) == (0, adapter_bytes)
    # The peak of the measured step differs by some pages from run to run.
    noise = abs(without.step_bytes - beside.step_bytes) / runner.kv_bytes_per_block() + 1
    assert without.num_blocks - beside.num_blocks == pytest.approx(100, abs=noise)


def test_memory_of_images_is_set_aside_before_the_blocks_are_counted(runner: ModelRunner) -> None:
    share = KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01)
    without = plan_kv_memory(runner, share)
    beside = plan_kv_memory(runner, replace(share, media_bytes=100 * runner.kv_bytes_per_block()))
    noise = abs(without.step_bytes - beside.step_bytes) / runner.kv_bytes_per_block() + 1
    assert without.num_blocks - beside.num_blocks == pytest.approx(100, abs=noise)


def test_a_twentieth_of_the_cache_is_set_aside_for_adapters_of_no_given_size(runner: ModelRunner) -> None:
    options = KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01, adapter_bytes=None)
    plan = plan_kv_memory(runner, options)
    block = runner.kv_bytes_per_block()
    assert plan.adapter_bytes == pytest.approx((plan.kv_bytes + plan.adapter_bytes) / 20, abs=block)
    given = plan_kv_memory(runner, replace(options, kv_cache_bytes=10 * block))
    assert (given.num_blocks, given.adapter_bytes) == (9, block // 2)


def test_the_tower_and_its_largest_image_are_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a model with images are those of its text part, less what tower, largest image and cache take."""
    entry = next(entry for entry in IMAGE_ZOO if entry.name == "Qwen2-VL")
    make_image_model(entry, tmp_path)
    monkeypatch.setattr("textmill_shard.model.memory.peak_bytes", lambda device, run: (run(), 1000)[1])
    monkeypatch.setattr("textmill_shard.model.memory.free_memory_bytes", lambda device: 1 << 40)
    options = KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01)
    plans = {}
    for text_only in (True, False):
        load = LoadOptions(model_dir=tmp_path, dtype="float32", block_size=4, text_only=text_only)
        runner = load_model(load, lambda phase, share: None)
        plans[text_only] = plan_kv_memory(runner, replace(options, media_bytes=0 if text_only else 5000))
    tower = plans[False].weight_bytes - plans[True].weight_bytes
    assert tower > 0
    # The sample of 256 rows takes 1000 bytes, and the largest image has 4096 rows.
    taken = tower + 5000 + 16 * 1000
    assert abs(plans[True].kv_bytes - plans[False].kv_bytes - taken) <= runner.kv_bytes_per_block()


@pytest.mark.parametrize("kv_cache_bytes", [None, 1 << 20])
def test_the_tower_of_a_cpu_is_timed_for_each_element_of_an_image(
    kv_cache_bytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image_model(next(entry for entry in IMAGE_ZOO if entry.name == "Qwen2-VL"), tmp_path)
    runner = load_model(LoadOptions(model_dir=tmp_path, dtype="float32", block_size=4), lambda phase, share: None)
    now_s = [0.0]

    def encode(tensors: Mapping[str, torch.Tensor]) -> None:
        now_s[0] += 0.5 * sum(tensor.numel() for tensor in tensors.values())

    monkeypatch.setattr(runner, "encode_media", encode)
    monkeypatch.setattr("textmill_shard.model.memory.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("textmill_shard.model.memory.free_memory_bytes", lambda device: 1 << 40)
    options = KvMemoryOptions(max_step_tokens=64, num_slots=4, kv_cache_bytes=kv_cache_bytes)
    assert plan_kv_memory(runner, options).encode_s_per_element == 0.5


def test_the_step_is_sampled_beside_the_state_of_a_sampler(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and lists of the sampler stand beside the step from its beginning to its end."""
    order: list[str] = []
    forward = runner.forward

    def noted(batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        order.append("step")
        return forward(batch, wants_hidden)

    def make() -> Callable[[ForwardOutput], None]:
        order.append("state")
        return lambda output: order.append(f"draws of {len(output.logits_NV)}, hidden {output.hidden_TD is not None}")

    monkeypatch.setattr(runner, "forward", noted)

    def peak(device: torch.device, run: Callable[[], object]) -> int:
        order.append("begin")
        run()
        order.append("end")
        return 1000

    monkeypatch.setattr("textmill_shard.model.memory.peak_bytes", peak)
    plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=64, num_slots=4, memory_fraction=0.01), make)
    assert order == [
        "begin",
        "state",
        "step",
        "draws of 1, hidden True",
        "end",
    ]  # a CPU tries a step with one row of logits
