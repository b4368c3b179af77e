"""Searches by beams over models whose layers carry state: the sequences are those of transformers without a cache."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.slots.beam_blocks import num_search_blocks
from textmill_shard.slots.plan import Admit, Beams, EarlyStopping, SlotErrorCode

from tests.fakes.step_harness import Shard, ids
from tests.zoo.drive import BLOCK_SIZE, BUDGET, NUM_NEW, load_zoo_model, make_admit, make_zoo_model, zoo_facts
from tests.zoo.states import STATE

ENTRIES = {entry.name: entry for entry in STATE}
FIRST = [(7 * index + 3) % 256 for index in range(29)]
SECOND = [(5 * index + 1) % 256 for index in range(17)]
NUM_BLOCKS = 64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def search(slot: int, prompt: Sequence[int], first_block: int, *, num_beams: int = 3) -> Admit:
    """Return the admit of a search whose blocks lie one behind the other."""
    made = replace(make_admit(slot, prompt, ()), beams=Beams(num_beams, 1, 1.0, EarlyStopping.NO))
    count = num_search_blocks(made, block_size=BLOCK_SIZE)
    return replace(made, block_ids=ids(range(first_block, first_block + count)))


def expected(reference: Any, prompt: list[int], *, num_beams: int = 3) -> list[int]:
    """Return the sequence that `generate` finds, which computes each text whole."""
    text = torch.tensor([prompt])
    reference.generation_config.eos_token_id = None
    with torch.inference_mode():
        output = reference.generate(
            text,
            attention_mask=torch.ones_like(text),
            num_beams=num_beams,
            max_new_tokens=NUM_NEW,
            do_sample=False,
            pad_token_id=0,
            use_cache=False,
        )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


def found(shard: Shard) -> dict[int, list[int]]:
    return {one.slot: one.sequences[0].tolist() for result in shard.results for one in result.found}


@pytest.mark.parametrize("name", ["mamba", "mamba2", "jamba", "qwen3_next", "lfm2"])
def test_searches_beside_each_other_and_beside_a_plain_request(name: str, tmp_path: Path) -> None:
    model = make_zoo_model(ENTRIES[name], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    runner.allocate_kv(NUM_BLOCKS)
    facts = replace(zoo_facts(runner), features=("beams",))
    with Shard(facts=facts, runner=runner) as shard:
        first = search(0, FIRST, 0)
        second = search(1, SECOND, len(first.block_ids), num_beams=2)
        taken = len(first.block_ids) + len(second.block_ids)
        plain = make_admit(2, SECOND, range(taken, taken + 8))
        shard.send(admits=[first, second, plain], budget=BUDGET)
        tokens = shard.run_to_end(0, 1, 2)
        assert found(shard) == {0: expected(model.reference, FIRST), 1: expected(model.reference, SECOND, num_beams=2)}
        alone = tokens[2]
        shard.results = []
        shard.send(admits=[make_admit(0, SECOND, range(8))], budget=BUDGET)
        assert shard.run_to_end(0)[0] == alone, "the slot of a search begins empty for its next occupant"


def test_searches_wait_for_rows_that_others_have(tmp_path: Path) -> None:
    """There are as many rows for searches as slots: of three searches with half of the slots each, one waits."""
    model = make_zoo_model(ENTRIES["mamba"], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    runner.allocate_kv(NUM_BLOCKS)
    facts = replace(zoo_facts(runner), features=("beams",))
    num_beams = facts.num_slots // 2
    with Shard(facts=facts, runner=runner) as shard:
        admits: list[Admit] = []
        for slot, prompt in enumerate((ONE, TWO, THREE)):
            taken = sum(len(admit.block_ids) for admit in admits)
            admits.append(search(slot, prompt, taken, num_beams=num_beams))
        shard.send(admits=admits, budget=BUDGET)
        shard.run_to_end(0, 1, 2)
        assert found(shard) == {
            slot: expected(model.reference, prompt, num_beams=num_beams)
            for slot, prompt in enumerate((ONE, TWO, THREE))
        }


ONE, TWO, THREE = [5, 3, 8], [1, 9], [7]


def test_a_search_without_memory_for_its_rows_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_zoo_model(ENTRIES["mamba"], tmp_path)
    runner = load_zoo_model(model, native_cache_dir=None)
    runner.allocate_kv(NUM_BLOCKS)

    def no_memory(sources: Sequence[int], targets: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(runner, "copy_states", no_memory)
    facts = replace(zoo_facts(runner), features=("beams",))
    with Shard(facts=facts, runner=runner) as shard:
        first = search(0, ONE, 0)
        plain = make_admit(1, TWO, range(len(first.block_ids), len(first.block_ids) + 8))
        shard.send(admits=[first, plain], budget=BUDGET)
        shard.run_to_end(1)
        errors = [error for result in shard.results for error in result.errors]
        assert [(error.slot, error.code) for error in errors] == [(0, SlotErrorCode.INTERNAL)]
