"""The distinct ids of growing texts against Python's sets."""

import numpy as np
import torch
from textmill_shard.sampling.token_set import NO_ID, RECOUNT_APPENDS, TokenSet

from tests.fakes.sampling_hand import CPU, rows_of


def ids_of(table: TokenSet, slot: int) -> set[int]:
    return set(table.ids(rows_of([slot], is_all=False))[0].tolist()) - {NO_ID}


def test_texts_of_unlike_lengths_are_kept_apart_and_places_stay() -> None:
    generator = np.random.default_rng(1)
    table = TokenSet(num_slots=4, device=CPU)
    texts = {0: [3, 0], 2: [], 3: np.unique(generator.integers(0, 500, 300)).tolist()}
    places: dict[tuple[int, int], int] = {}
    for slot, text in texts.items():
        table.admit(slot, np.array(text, dtype=np.int64))
        places |= {(slot, token): place for place, token in enumerate(text)}
    rows = rows_of([0, 2, 3], is_all=False)
    for _ in range(2 * RECOUNT_APPENDS + 10):
        tokens = generator.integers(0, 300, 3).tolist()
        found = table.append(rows, torch.tensor(tokens)).tolist()
        for (slot, text), token, place in zip(texts.items(), tokens, found, strict=True):
            assert places.setdefault((slot, token), len(set(text))) == place
            text.append(token)
    for slot, text in texts.items():
        assert ids_of(table, slot) == set(text), slot


def test_a_list_is_read_little_further_than_it_goes() -> None:
    table = TokenSet(num_slots=1, device=CPU)
    table.admit(0, np.array([5, 6]))
    rows = rows_of([0], is_all=True)
    for number in range(10 * RECOUNT_APPENDS):
        table.append(rows, torch.tensor([number % 3]))
    assert table.ids(rows).shape[1] <= 5 + RECOUNT_APPENDS
    assert ids_of(table, 0) == {0, 1, 2, 5, 6}


def test_the_next_occupant_finds_nothing_of_the_last() -> None:
    table = TokenSet(num_slots=2, device=CPU)
    table.admit(1, np.arange(100))
    table.admit(1, np.array([7]))
    table.append(rows_of([1], is_all=False), torch.tensor([8]))
    assert ids_of(table, 1) == {7, 8}


def test_what_stands_behind_the_end_of_a_list_is_its_first_id() -> None:
    table = TokenSet(num_slots=2, device=CPU)
    table.admit(0, np.array([4, 9]))
    table.admit(1, np.arange(20, 90))
    assert table.ids(rows_of([0, 1], is_all=True))[0].tolist() == [4, 9] + [4] * 68
