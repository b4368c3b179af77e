"""The rows of the slots after an admit, a grant and an end."""

import pytest
from textmill_shard.slots.plan import Grammar
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import NOBODY, SlotTable

from tests.fakes.step_harness import admit, ids

GRAMMAR = Grammar("start: /a+/")


def make_table(num_blocks: int = 64) -> SlotTable:
    return SlotTable(num_slots=3, block_size=4, num_blocks=num_blocks)


def test_a_table_that_grows_wider_keeps_the_blocks_of_all() -> None:
    table = make_table()
    table.admit(admit(0, [1], blocks=[7, 8]))
    table.admit(admit(1, [1], blocks=[1]))
    more = ids(range(10, 50))
    table.grant(1, more)
    assert table.blocks_of(0).tolist() == [7, 8]
    assert table.blocks_of(1).tolist() == [1, *more.tolist()]
    assert (table.block_tables_SB[0, 2:] == table.num_blocks).all()  # the scratch block


def test_rule_10_written_blocks_know_their_place_in_the_table_of_who_writes() -> None:
    table = make_table()
    table.admit(admit(0, [1] * 9, blocks=[4, 5, 6]))
    table.admit(admit(1, [1] * 9, blocks=[4, 5, 9], cached=8))  # two cached blocks, and one to write
    table.grant(1, ids([3]))
    assert table.writers[[4, 5, 6, 9, 3]].tolist() == [0, 0, 0, 1, 1]
    assert table.write_indices[[4, 5, 6, 9, 3]].tolist() == [0, 1, 2, 2, 3]
    assert table.num_holders[[4, 5, 6, 9, 3]].tolist() == [2, 2, 1, 1, 1]


def test_rule_08_an_end_gives_back_only_what_was_its_own() -> None:
    table = make_table()
    table.admit(admit(0, [1] * 9, blocks=[4, 5, 6]))
    table.admit(admit(1, [1] * 9, blocks=[4, 5, 9], cached=8))
    table.end(1)
    assert table.writers[[4, 5, 6, 9]].tolist() == [0, 0, 0, NOBODY]
    assert table.num_holders[[4, 5, 6, 9]].tolist() == [1, 1, 1, 0]
    assert (table.block_tables_SB[1] == table.num_blocks).all()
    table.end(0)
    assert not table.num_holders.any()
    assert (table.writers == NOBODY).all()
    assert table.is_empty


@pytest.mark.parametrize("grammar", [None, GRAMMAR])
def test_rule_19_a_grammar_says_itself_when_the_text_may_end(grammar: Grammar | None) -> None:
    table = make_table()
    table.admit(
        admit(
            0,
            [1, 2, 3],
            blocks=[0],
            sampling=SamplingParams(min_new_tokens=5),
            max_new=9,
            ignore_eos=True,
            grammar=grammar,
        )
    )
    has_grammar = grammar is not None
    assert table.min_tokens[0] == (3 if has_grammar else 8)
    assert table.ignores_eos[0] == (not has_grammar)
    assert table.is_held[0] == has_grammar


def test_rule_13_a_grant_ends_the_starvation() -> None:
    table = make_table()
    table.admit(admit(0, [1] * 4, blocks=[0]))
    table.was_starved[0] = True
    table.grant(0, ids([]))
    assert table.was_starved[0]
    table.grant(0, ids([1]))
    assert not table.was_starved[0]
    assert table.num_places[0] == 8
