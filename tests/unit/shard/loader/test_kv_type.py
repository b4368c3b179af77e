"""A model with keys and values of 8 bits computes nearly the same logits, however its texts are cut, and says so."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.errors import BackendRefused
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.kv_scales import KV_TYPES
from textmill_shard.model.runner import ModelRunner
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from tests.fakes.native_cases import native_cache_folder, native_kernels
from tests.fakes.paged_driver import DrivenSequence, PagedDriver
from tests.fakes.tiny_models import VOCAB_SIZE, make_random_model, make_tiny_llama
from tests.zoo.drive import make_zoo_model
from tests.zoo.table import FLAT, STATE

BLOCK_SIZE = 4
E4M3 = torch.float8_e4m3fn
# Sums in another order, of numbers with equal bits. A stored number near the middle of two may become either of them.
EQUAL = 2e-3
TYPES = pytest.mark.parametrize("kv_type", KV_TYPES)


def load(folder: Path, kv_type: str = "auto", **options: object) -> ModelRunner:
    given = {"model_dir": folder, "dtype": "float32", "block_size": BLOCK_SIZE, "kv_cache_dtype": kv_type, **options}
    return load_model(LoadOptions(**given), lambda phase, share: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def exact(folder: Path) -> ModelRunner:
    return load(folder)


@pytest.fixture(scope="module")
def runners(folder: Path) -> dict[str, ModelRunner]:
    return {kv_type: load(folder, kv_type) for kv_type in KV_TYPES}


def prompt(length: int, *, seed: int = 1) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(runner: ModelRunner, chunks: tuple[int, ...], *, seed: int = 0) -> torch.Tensor:
    """Return `[T, V]` of a prompt in these chunks."""
    driver = PagedDriver(runner, num_blocks=16, seed=seed)
    sequence = driver.start(prompt(sum(chunks)), max_new_tokens=1)
    for length in chunks:
        driver.step([(sequence, length)], all_logits=True)
    return torch.stack([sequence.logits[position] for position in range(sum(chunks))])


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def by_transformers(folder: Path, tokens: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Return `[T, V]` by transformers' own code, whose attention rounds keys and values to 8 bits."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **more: Any
    ) -> tuple[torch.Tensor, None]:
        key, value = ((x * 2.0).to(dtype).float() / 2.0 for x in (key, value))
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=more.get("scaling")
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("eight_bits_of_the_test", attend)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("eight_bits_of_the_test")
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@TYPES
def test_logits_are_those_of_transformers_with_rounded_keys_and_values(
    folder: Path, exact: ModelRunner, runners: dict[str, ModelRunner], kv_type: str
) -> None:
    runner = runners[kv_type]
    found = logits_of(runner, (17, 1, 22))
    assert difference(found, by_transformers(folder, prompt(40), KV_TYPES[kv_type])) < EQUAL
    assert difference(found, logits_of(exact, (40,))) > 1e-3
    assert runner.kv_pool is not None
    assert {tensor.dtype for tensor in (*runner.kv_pool.keys, *runner.kv_pool.values)} == {KV_TYPES[kv_type]}
    assert runner.kv_bytes_per_block() * 4 == exact.kv_bytes_per_block()


@TYPES
@pytest.mark.parametrize("chunks", [(1,) * 30, (7, 7, 7, 7, 2), (29, 1)])
def test_any_chunking_gives_the_logits_of_the_whole_prompt(
    runners: dict[str, ModelRunner], kv_type: str, chunks: tuple[int, ...]
) -> None:
    whole = logits_of(runners[kv_type], (30,))
    assert difference(logits_of(runners[kv_type], chunks, seed=3), whole) < EQUAL


@TYPES
def test_a_prefix_of_another_request_gives_equal_logits(runners: dict[str, ModelRunner], kv_type: str) -> None:
    """What a prefix hit and a preemption change is who wrote the blocks, and in which step."""
    runner = runners[kv_type]
    driver = PagedDriver(runner, num_blocks=32)
    first = driver.start(prompt(24), max_new_tokens=8)
    driver.step([(first, 24)])
    second = DrivenSequence(tokens=prompt(24), blocks=list(first.blocks[:4]), num_computed=16)
    second.blocks += driver.start(prompt(4), max_new_tokens=12).blocks
    driver.step([(second, 8)])
    assert difference(second.logits[23], first.logits[23]) < EQUAL
    driver.decode_greedily([first], 6)
    # The preempted request comes again with its tokens, into other blocks.
    again = driver.start(first.tokens[:29], max_new_tokens=4)
    driver.step([(again, 29)])
    assert difference(again.logits[28], first.logits[28]) < EQUAL


@TYPES
def test_neighbours_change_nothing(runners: dict[str, ModelRunner], kv_type: str) -> None:
    alone = logits_of(runners[kv_type], (23,))[22]
    driver = PagedDriver(runners[kv_type], num_blocks=60, seed=9)
    group = [driver.start(prompt(length, seed=length), max_new_tokens=1) for length in (5, 31)]
    group.insert(1, driver.start(prompt(23), max_new_tokens=1))
    driver.step([(member, len(member.tokens)) for member in group])
    assert difference(group[1].logits[22], alone) < EQUAL


def test_places_copied_from_a_block_keep_their_numbers(runners: dict[str, ModelRunner]) -> None:
    runner = runners["fp8_e4m3fn"]
    driver = PagedDriver(runner, num_blocks=8)
    sequence = driver.start(prompt(4), max_new_tokens=1)
    driver.step([(sequence, 4)])
    assert runner.kv_pool is not None
    source, target = sequence.blocks[0], (sequence.blocks[0] + 1) % 8
    runner.copy_places(source_block=source, target_block=target, num_places=3)
    for tensor in (*runner.kv_pool.keys, *runner.kv_pool.values):
        assert torch.equal(tensor[target, :3].float(), tensor[source, :3].float())


def test_a_model_with_states_keeps_its_attention_in_8_bits(tmp_path: Path) -> None:
    make_zoo_model(next(entry for entry in STATE if entry.name == "qwen3_next"), tmp_path)
    runner = load(tmp_path, "fp8_e4m3fn")
    assert runner.facts.layout == "state"
    assert runner.kv_pool is not None
    assert {tensor.dtype for tensor in runner.kv_pool.keys} == {torch.float8_e4m3fn}


def test_keys_and_values_of_different_width_take_8_bits(tmp_path: Path) -> None:
    entry = next(entry for entry in FLAT if entry.name == "deepseek_v3")
    make_zoo_model(entry, tmp_path)
    runner = load(tmp_path, "fp8_e4m3fn")
    assert any(spec.key_dim != spec.value_dim for spec in runner.facts.kv_specs)
    assert difference(logits_of(runner, (20, 3)), by_transformers(tmp_path, prompt(23), E4M3)) < EQUAL


def test_a_model_with_attention_of_its_own_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bloom", vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    make_random_model(config, tmp_path)
    with pytest.raises(BackendRefused, match="fp8_e5m2: models of type bloom attend in their own code"):
        load(tmp_path, "fp8_e5m2")


def test_a_model_without_keys_and_values_is_refused(tmp_path: Path) -> None:
    make_zoo_model(next(entry for entry in STATE if entry.name == "mamba"), tmp_path)
    with pytest.raises(BackendRefused, match="fp8_e4m3fn: models of type mamba keep no keys and values"):
        load(tmp_path, "fp8_e4m3fn")


def test_on_a_cpu_plain_torch_reads_8_bits_and_the_log_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    native_kernels()
    with caplog.at_level(logging.INFO, "textmill_shard"):
        runner = load(folder, "fp8_e4m3fn", native_cache_dir=native_cache_folder())
    records = {record.message: record.__dict__ for record in caplog.records}
    assert records["model loaded"]["attention"] == "reference"
    warning = records["keys and values of 8 bits are read by plain torch on a CPU, which saves memory and is slow"]
    assert warning["levelname"] == "WARNING"
    told = records["keys and values are kept in 8 bits"]
    assert told["kv_cache_dtype"] == "fp8_e4m3fn"
    assert 0 < told["logits_differ_by"] < 1
    assert difference(logits_of(runner, (20,)), by_transformers(folder, prompt(20), E4M3)) < EQUAL
