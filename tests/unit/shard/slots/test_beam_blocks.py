"""The blocks of a search: whatever forks happen, each sequence finds its own tokens, and no block is lost."""

import random

import numpy as np
import pytest
from textmill_shard.slots.beam_blocks import BeamBlocks, num_search_blocks
from textmill_shard.slots.plan import Admit, Beams, EarlyStopping
from textmill_shard.slots.sampling_params import SamplingParams

SIZE = 4


def search_admit(num_prompt: int, num_new: int, num_beams: int) -> Admit:
    admit = Admit(
        request_id=1,
        slot=0,
        prompt_ids=np.arange(num_prompt),
        output_ids=np.zeros(0, dtype=np.int64),
        num_cached_tokens=0,
        block_ids=np.zeros(0, dtype=np.int64),
        max_new_tokens=num_new,
        sampling=SamplingParams(),
        beams=Beams(num_beams, 1, 1.0, EarlyStopping.NO),
    )
    num_blocks = num_search_blocks(admit, block_size=SIZE)
    return Admit(
        **{
            **{name: getattr(admit, name) for name in Admit.__slots__},
            "block_ids": np.random.default_rng(3).permutation(100)[:num_blocks],
        }
    )


@pytest.mark.parametrize("num_beams", [2, 3, 8])
@pytest.mark.parametrize("num_prompt", [1, 3, 4, 5, 8])
def test_each_sequence_reads_its_own_tokens(num_prompt: int, num_beams: int) -> None:
    chance = random.Random(num_prompt * 10 + num_beams)
    admit = search_admit(num_prompt, num_new=14, num_beams=num_beams)
    places: dict[tuple[int, int], int] = {}  # (block, offset) -> token
    for index, token in enumerate(admit.prompt_ids.tolist()):
        places[int(admit.block_ids[index // SIZE]), index % SIZE] = token
    blocks = BeamBlocks(admit, block_size=SIZE)
    texts = [admit.prompt_ids.tolist()] * num_beams
    for step in range(13):
        parents = [chance.randrange(num_beams) for _ in range(num_beams)]
        num_computed = num_prompt + step
        for copy in blocks.fork(parents, num_computed):
            for offset in range(copy.num_places):
                places[copy.target_block, offset] = places[copy.source_block, offset]
        texts = [[*texts[parent], 1000 * step + row] for row, parent in enumerate(parents)]
        for row, text in enumerate(texts):
            places[int(blocks.tables_WB[row, num_computed // SIZE]), num_computed % SIZE] = text[-1]
        for row, text in enumerate(texts):
            found = [places[int(blocks.tables_WB[row, at // SIZE]), at % SIZE] for at in range(len(text))]
            assert found == text
        assert set(blocks.tables_WB[:, : num_computed // SIZE + 1].flatten().tolist()) <= set(admit.block_ids.tolist())


@pytest.mark.parametrize(
    ("num_prompt", "num_new", "num_beams", "wanted"),
    [
        (4, 1, 3, 1),  # nothing is computed from the only output token
        (4, 2, 3, 4),
        (5, 1, 3, 4),  # each sequence may need the block in which the prompt ends
        (5, 4, 2, 3),
        (5, 5, 2, 5),
    ],
)
def test_a_search_counts_its_blocks(num_prompt: int, num_new: int, num_beams: int, wanted: int) -> None:
    assert len(search_admit(num_prompt, num_new, num_beams).block_ids) == wanted
