"""The state row of a slot belongs to the slot's occupant, from the occupant's first token to its last."""

from pathlib import Path

import pytest
import torch

from tests.fakes.step_harness import Shard
from tests.zoo.drive import BUDGET, NUM_NEW, load_zoo_model, make_admit, make_zoo_model, reference_logits, zoo_facts
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
