"""The paged runner agrees with transformers' own eager forward pass without a cache, in fp32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from tests.fakes.paged_driver import DrivenSequence, PagedDriver
from tests.fakes.tiny_models import ARCHITECTURES, VOCAB_SIZE, make_tiny_model

# Relative to the largest logit: fp32 sums in another order.
TOLERANCE = 2e-5
BLOCK_SIZE = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    disable_progress_bar()
    return tmp_path_factory.mktemp("models")


def load(folders: Path, model_type: str) -> ModelRunner:
    folder = folders / model_type
    if not folder.is_dir():
        make_tiny_model(folder, model_type)
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE)
    return load_model(options, lambda phase, share: None)


@pytest.fixture(scope="module")
def llama(folders: Path) -> ModelRunner:
    return load(folders, "llama")


def prompt(length: int, *, seed: int) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def uncached_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return logits `[T, V]` of the whole text in one forward pass of transformers' model, with its own masks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    assert difference <= TOLERANCE


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_chunks_mixed_with_decodes_give_the_uncached_logits(folders: Path, model_type: str) -> None:
    driver = PagedDriver(load(folders, model_type), num_blocks=48)
    first, second, third, fourth = (
        driver.start(prompt(length, seed=length), max_new_tokens=8) for length in (37, 5, 50, 21)
    )
    driver.step([(second, 5), (first, 20)])
    second.tokens.append(int(second.logits[4].argmax()))
    driver.step([(second, 1), (first, 17), (third, 9)])
    for sequence in (first, second):
        sequence.tokens.append(int(sequence.logits[sequence.num_computed - 1].argmax()))
    driver.step([(third, 41), (first, 1), (fourth, 1), (second, 1)], padding=3)
    driver.step([(fourth, 20)])
    sequences = [third, first, fourth]
    driver.decode_greedily(sequences, 4)

    for sequence in (first, second, third, fourth):
        expected = uncached_logits(folders / model_type, sequence.tokens)
        for position, logits in sequence.logits.items():
            assert_close(logits, expected[position])


@pytest.mark.parametrize("chunks", [(30,), (1,) * 30, (7, 7, 7, 7, 2), (4, 4, 16, 5, 1), (29, 1), (1, 29)])
def test_any_chunking_gives_the_whole_prompts_logits(
    llama: ModelRunner, folders: Path, chunks: tuple[int, ...]
) -> None:
    driver = PagedDriver(llama, num_blocks=12, seed=sum(chunks[:1]))
    sequence = driver.start(prompt(30, seed=1), max_new_tokens=1)
    for length in chunks:
        driver.step([(sequence, length)], all_logits=True)
    assert_close(
        torch.stack([sequence.logits[position] for position in range(30)]),
        uncached_logits(folders / "llama", sequence.tokens),
    )


def test_chunk_longer_than_a_piece_of_the_backend(llama: ModelRunner, folders: Path) -> None:
    driver = PagedDriver(llama, num_blocks=120)
    sequence = driver.start(prompt(401, seed=2), max_new_tokens=1)
    driver.step([(sequence, 30)], all_logits=True)
    driver.step([(sequence, 371)], all_logits=True)
    assert_close(
        torch.stack([sequence.logits[position] for position in range(401)]),
        uncached_logits(folders / "llama", sequence.tokens),
    )


def test_alone_equals_batched(llama: ModelRunner) -> None:
    def run(others: int) -> DrivenSequence:
        driver = PagedDriver(llama, num_blocks=120, seed=others)
        sequence = driver.start(prompt(23, seed=3), max_new_tokens=12)
        neighbours = [driver.start(prompt(5 + 3 * index, seed=index), max_new_tokens=12) for index in range(others)]
        group = [*neighbours[: others // 2], sequence, *neighbours[others // 2 :]]
        driver.step([(member, len(member.tokens)) for member in group])
        driver.decode_greedily(group, 12)
        return sequence

    alone, batched = run(others=0), run(others=7)
    assert alone.tokens == batched.tokens
    for position, logits in alone.logits.items():
        assert_close(batched.logits[position], logits)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_what_an_earlier_owner_left_in_a_block_is_not_seen(folders: Path, model_type: str) -> None:
    runner = load(folders, model_type)
    driver = PagedDriver(runner, num_blocks=12)
    assert runner.kv_pool is not None
    for tensor in (*runner.kv_pool.keys, *runner.kv_pool.values):
        tensor.fill_(float("nan"))
    long, short = driver.start(prompt(21, seed=4), max_new_tokens=3), driver.start(prompt(6, seed=5), max_new_tokens=3)
    driver.step([(long, 21), (short, 6)])
    driver.decode_greedily([short, long], 3)
    for sequence in (long, short):
        expected = uncached_logits(folders / model_type, sequence.tokens)
        for position, logits in sequence.logits.items():
            assert_close(logits, expected[position])


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "cohere", "granite", "gpt2", "opt"])
def test_projected_hidden_states_are_the_logits(folders: Path, model_type: str) -> None:
    runner = load(folders, model_type)
    assert runner.facts.can_project
    driver = PagedDriver(runner, num_blocks=12)
    sequence = driver.start(prompt(19, seed=6), max_new_tokens=1)
    output = runner.forward(driver.build([(sequence, 19)]), wants_hidden=True)
    assert output.hidden_TD is not None
    logits = torch.cat([runner.project(output.hidden_TD[:8]), runner.project(output.hidden_TD[8:])])
    assert logits.dtype is torch.float32
    assert_close(logits, uncached_logits(folders / model_type, sequence.tokens))


def test_step_that_samples_nothing_gives_no_logits(llama: ModelRunner) -> None:
    driver = PagedDriver(llama, num_blocks=4)
    sequence = driver.start(prompt(9, seed=7), max_new_tokens=1)
    batch = replace(driver.build([(sequence, 5)]), logit_rows_N=torch.empty(0, dtype=torch.int64))
    output = llama.forward(batch)
    assert output.logits_NV.shape == (0, VOCAB_SIZE)
    assert output.hidden_TD is None


def test_blocks_cost_what_the_pool_takes(llama: ModelRunner) -> None:
    llama.allocate_kv(10)
    assert llama.kv_pool is not None
    # 2 layers, 2 key/value heads of 16, keys and values, 4 tokens of 4 bytes; one block is scratch.
    assert llama.kv_bytes_per_block() == 2 * 2 * 16 * 2 * 4 * 4
    assert llama.kv_pool.num_bytes == 11 * llama.kv_bytes_per_block()
