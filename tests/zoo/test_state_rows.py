"""The state row of a slot belongs to the slot's occupant, from the occupant's first token to its last."""

from pathlib import Path

import pytest
import torch
from textmill_shard.layouts.sub_batches import cut_into_sub_batches
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput

from tests.fakes.step_harness import Shard
from tests.zoo.drive import (
    BUDGET,
    CHUNK_TOKENS,
    NUM_NEW,
    load_zoo_model,
    make_admit,
    make_zoo_model,
    reference_logits,
    run_zoo_model,
    zoo_facts,
)
from tests.zoo.states import STATE

ENTRIES = {entry.name: entry for entry in STATE}
FIRST = [(7 * index + 3) % 256 for index in range(29)]
SECOND = [(5 * index + 1) % 256 for index in range(17)]
ONE_TOKEN = [77]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def greedy(reference: torch.nn.Module, prompt: list[int]) -> list[int]:
    """Return transformers' greedy tokens, computed without a cache."""
    tokens = list(prompt)
    for _ in range(NUM_NEW):
        tokens.append(int(reference_logits(reference, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", ["mamba", "qwen3_next"])
def test_chunks_that_end_in_a_token_beside_other_chunks(name: str, tmp_path: Path) -> None:
    """Single tokens that stand between chunks are computed in their place."""
    model = make_zoo_model(ENTRIES[name], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    lengths = (CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 1, 1, 3 * CHUNK_TOKENS + 1)
    assert run_zoo_model(model, runner, prompt_lengths=lengths).difference <= ENTRIES[name].tolerance


@pytest.mark.parametrize("name", ["jamba", "bamba", "qwen3_next", "lfm2"])
def test_a_row_begins_empty_for_each_occupant(name: str, tmp_path: Path) -> None:
    model = make_zoo_model(ENTRIES[name], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    runner.allocate_kv(64)
    with Shard(facts=zoo_facts(runner), runner=runner) as shard:
        for prompt in (FIRST, SECOND, ONE_TOKEN, FIRST):
            shard.results = []
            shard.send(admits=[make_admit(0, prompt, range(12))], budget=BUDGET)
            assert shard.run_to_end(0)[0] == greedy(model.reference, prompt)


@pytest.mark.parametrize("name", ["jamba", "bamba", "qwen3_next", "lfm2", "mamba2"])
def test_a_step_that_runs_out_of_memory_at_its_end_leaves_the_rows_as_they_were(name: str, tmp_path: Path) -> None:
    """Each step of several texts fails behind the last layer of its last pass, and runs again in halves."""
    model = make_zoo_model(ENTRIES[name], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    runner.allocate_kv(64)
    num_passes_left = 0
    forward = runner.forward

    def counted(batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        nonlocal num_passes_left
        num_passes_left = len(cut_into_sub_batches(batch)) if len(batch.context_lens_R) > 1 else -1
        return forward(batch, wants_hidden)

    def fail_at_last(*args: object) -> None:
        nonlocal num_passes_left
        num_passes_left -= 1
        if num_passes_left == 0:
            raise torch.OutOfMemoryError("none left")

    runner.forward = counted  # type: ignore[method-assign]
    head = next(module for module in runner.modules() if hasattr(module, "lm_head")).lm_head
    head.register_forward_pre_hook(fail_at_last)
    prompts = (FIRST, SECOND, ONE_TOKEN)
    with Shard(facts=zoo_facts(runner), runner=runner) as shard:
        admits = [make_admit(slot, prompt, range(12 * slot, 12 * slot + 12)) for slot, prompt in enumerate(prompts)]
        shard.send(admits=admits, budget=BUDGET)
        tokens = shard.run_to_end(0, 1, 2)
        assert shard.status.heartbeat().num_memory_faults >= NUM_NEW
    assert tokens == {slot: greedy(model.reference, prompt) for slot, prompt in enumerate(prompts)}


def test_a_preempted_request_computes_its_state_again_in_another_slot(tmp_path: Path) -> None:
    model = make_zoo_model(ENTRIES["jamba"], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    runner.allocate_kv(64)
    undisturbed = greedy(model.reference, FIRST)
    for num_before in range(1, NUM_NEW):
        with Shard(facts=zoo_facts(runner), runner=runner) as shard:
            again = make_admit(2, FIRST, range(12), output=undisturbed[:num_before])
            shard.send(admits=[make_admit(1, SECOND, range(20, 32)), again], budget=BUDGET)
            assert shard.run_to_end(1, 2) == {1: greedy(model.reference, SECOND), 2: undisturbed[num_before:]}
