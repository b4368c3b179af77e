"""The fixed rule of composition, and the tensors that follow from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_shard.engine.batch_builder import BatchBuilder
from textmill_shard.slots.plan import Budget, Grammar, MediaSpan
from textmill_shard.slots.slot_table import NO_BOUND, RopeRow, SlotTable, TokenRange
from textmill_shard.slots.step_composer import ComposedStep, compose_step

from tests.fakes.step_harness import BLOCK_SIZE, NUM_BLOCKS, NUM_SLOTS, admit, ids

WIDE = Budget(max_step_tokens=64, max_prefill_tokens=64, max_chunk_tokens=64)


def make_table() -> SlotTable:
    return SlotTable(num_slots=NUM_SLOTS, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)


def decoding_table(*slots: int) -> SlotTable:
    """Return a table in which these slots have sampled their first token after a prompt of two."""
    table = make_table()
    for slot in slots:
        table.admit(admit(slot, [1, 2], max_new=20))
    finish(table, compose_step(table, WIDE))
    return table


def finish(table: SlotTable, step: ComposedStep) -> None:
    """Change the table as a forward pass does, with token 7 for each row that samples."""
    table.advance(step.slots_R, step.counts_R)
    slots = step.slots_R[step.samples_R]
    table.append(slots, np.full(len(slots), 7))


def rows(step: ComposedStep) -> list[list[int]]:
    """Return [slot, start, count] of each row."""
    return np.stack([step.slots_R, step.starts_R, step.counts_R], axis=1).tolist()


def test_running_slots_decode_before_any_prefill() -> None:
    table = decoding_table(3, 1)
    table.admit(admit(0, [5] * 6))
    step = compose_step(table, Budget(max_step_tokens=4, max_prefill_tokens=4, max_chunk_tokens=4))
    assert rows(step) == [[1, 2, 1], [3, 2, 1], [0, 0, 2]]
    assert step.samples_R.tolist() == [True, True, False]


def test_decodes_may_leave_nothing_for_prefills() -> None:
    table = decoding_table(1, 2, 3)
    table.admit(admit(0, [5] * 6))
    step = compose_step(table, Budget(max_step_tokens=3, max_prefill_tokens=9, max_chunk_tokens=9))
    assert rows(step) == [[1, 2, 1], [2, 2, 1], [3, 2, 1]]


def test_prefills_share_the_budget_in_two_passes() -> None:
    table = make_table()
    for slot, length in ((2, 12), (0, 2), (3, 9)):
        table.admit(admit(slot, [5] * length, max_new=2))
    # The first pass gives at most 4 tokens each: 4, 2, 4. The 3 tokens that are left go to the first slot again.
    step = compose_step(table, Budget(max_step_tokens=13, max_prefill_tokens=20, max_chunk_tokens=4))
    assert rows(step) == [[2, 0, 7], [0, 0, 2], [3, 0, 4]]
    assert step.samples_R.tolist() == [False, True, False]


def test_rule_16_callers_share_the_prefills_chunk_by_chunk() -> None:
    """The first caller has four long prompts, the second one has two, and the third one has one."""
    table = SlotTable(num_slots=7, block_size=BLOCK_SIZE, num_blocks=2 * NUM_BLOCKS)
    callers = {4: 7, 0: 7, 5: 7, 3: 2, 1: 7, 2: 2, 6: 0}
    for slot, caller in callers.items():
        table.admit(replace(admit(slot, [5] * 8, max_new=2), caller=caller))
    # Two chunks of 4 tokens for each caller: in one prompt for the third one, in two prompts for the others.
    step = compose_step(table, Budget(max_step_tokens=24, max_prefill_tokens=24, max_chunk_tokens=4))
    assert rows(step) == [[4, 0, 4], [0, 0, 4], [3, 0, 4], [2, 0, 4], [6, 0, 8]]
    # The third caller has no more to read, and the two others share the rest.
    finish(table, step)
    step = compose_step(table, Budget(max_step_tokens=24, max_prefill_tokens=12, max_chunk_tokens=4))
    assert rows(step) == [[6, 8, 1], [4, 4, 4], [0, 4, 4], [3, 4, 4]]


def test_rule_16_callers_share_the_prefills_by_weight_over_the_steps() -> None:
    """A step has room for one chunk of 4 tokens, so that only what is carried from step to step can be by weight."""
    table = SlotTable(num_slots=4, block_size=BLOCK_SIZE, num_blocks=400)
    for slot, (caller, weight) in enumerate([(1, 1.0), (2, 3.0), (2, 3.0), (3, 0.5)]):
        blocks = np.arange(90 * slot, 90 * slot + 90)
        request = replace(admit(slot, [5] * 340, max_new=2), caller=caller, caller_weight=weight, block_ids=blocks)
        table.admit(request)
    for _ in range(90):
        finish(table, compose_step(table, Budget(max_step_tokens=8, max_prefill_tokens=4, max_chunk_tokens=4)))
    # 90 steps of 4 tokens by 1 : 3 : 0.5. A step of one chunk reads the caller's first prompt.
    assert table.num_computed.tolist() == [80, 240, 0, 40]


def test_rule_16_a_caller_who_comes_later_has_no_credit_and_no_debt() -> None:
    table = SlotTable(num_slots=3, block_size=BLOCK_SIZE, num_blocks=300)
    budget = Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=4)
    for slot in (0, 1):
        blocks = np.arange(90 * slot, 90 * slot + 90)
        table.admit(replace(admit(slot, [5] * 340, max_new=2), caller=slot, block_ids=blocks))
    for _ in range(10):
        finish(table, compose_step(table, budget))
    table.admit(replace(admit(2, [5] * 8, max_new=2), caller=2, block_ids=np.arange(200, 203)))
    tokens = np.zeros(3, dtype=int)
    for _ in range(3):
        step = compose_step(table, budget)
        tokens[step.slots_R] += step.counts_R
        finish(table, step)
    assert tokens.tolist() == [8, 8, 8]


def test_rule_16_the_text_of_an_encoder_stays_whole_beside_other_callers() -> None:
    """The second caller's text of 9 tokens and the decoder's token do not fit beside the first caller's."""
    table = encoder_table((9, 1), (9, 1), (2, 1))
    table.callers[:3] = (1, 2, 3)
    step = compose_step(table, Budget(max_step_tokens=14, max_prefill_tokens=14, max_chunk_tokens=4))
    assert rows(step) == [[0, 0, 10], [2, 0, 3]]
    finish(table, step)
    table.end(0)
    step = compose_step(table, Budget(max_step_tokens=14, max_prefill_tokens=14, max_chunk_tokens=4))
    assert [1, 0, 10] in rows(step)


def test_the_prefill_budget_limits_apart_from_the_step_budget() -> None:
    table = decoding_table(1)
    table.admit(admit(0, [5] * 9))
    step = compose_step(table, Budget(max_step_tokens=20, max_prefill_tokens=3, max_chunk_tokens=8))
    assert rows(step) == [[1, 2, 1], [0, 0, 3]]


def test_order_of_admission_outlasts_the_reuse_of_a_slot() -> None:
    table = make_table()
    table.admit(admit(0, [5] * 3))
    table.admit(admit(1, [5] * 3))
    table.end(0)
    table.admit(admit(0, [5] * 3))
    assert compose_step(table, WIDE).slots_R.tolist() == [1, 0]


def test_rule_13_a_prefill_takes_no_more_than_its_places_and_starves_when_they_are_used_up() -> None:
    table = make_table()
    table.admit(admit(0, [5] * 9, blocks=[4, 5], max_new=9))
    step = compose_step(table, WIDE)
    assert rows(step) == [[0, 0, 8]]
    assert step.samples_R.tolist() == [False]
    finish(table, step)
    step = compose_step(table, WIDE)
    assert (step.is_empty, step.starved_slots.tolist()) == (True, [0])
    assert compose_step(table, WIDE).starved_slots.tolist() == []
    table.grant(0, ids([6]))
    for _ in range(4):
        step = compose_step(table, WIDE)
        assert step.starved_slots.tolist() == []
        finish(table, step)
    assert table.num_computed[0] == 12
    assert compose_step(table, WIDE).starved_slots.tolist() == [0]  # reported anew


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=NUM_SLOTS),
    num_decoding=st.integers(0, 2),
    step_tokens=st.integers(4, 30),
    prefill_tokens=st.integers(1, 30),
    chunk=st.integers(1, 12),
)
def test_a_step_keeps_to_its_budget_and_wastes_none_of_it(
    lengths: Sequence[int], num_decoding: int, step_tokens: int, prefill_tokens: int, chunk: int
) -> None:
    num_decoding = min(num_decoding, NUM_SLOTS - 1)
    table = decoding_table(*range(num_decoding))
    lengths = lengths[: NUM_SLOTS - num_decoding]
    for slot, length in enumerate(lengths, start=num_decoding):
        table.admit(admit(slot, [5] * length))
    step = compose_step(table, Budget(step_tokens, prefill_tokens, chunk))
    wanted = min(prefill_tokens, step_tokens - num_decoding, sum(lengths))
    assert step.num_tokens == num_decoding + wanted
    taken = dict(zip(step.slots_R.tolist(), step.counts_R.tolist(), strict=True))
    chunks = [taken.get(slot, 0) for slot in range(num_decoding, num_decoding + len(lengths))]
    # No slot gets more than a chunk while a slot behind it, in the order of admission, has less than a chunk.
    for index, count in enumerate(chunks):
        if count > chunk:
            assert all(chunks[after] >= min(chunk, lengths[after]) for after in range(index + 1, len(chunks)))


def test_tensors_of_a_mixed_step() -> None:
    table = make_table()
    table.admit(admit(2, [11, 12, 13, 14], blocks=[9, 3], max_new=4))
    finish(table, compose_step(table, WIDE))
    table.admit(admit(1, [21, 22, 23, 24, 25, 26], blocks=[5, 7, 6]))
    table.admit(admit(0, [31, 32, 33, 34, 35, 36, 37], blocks=[4, 8], cached=4))
    step = compose_step(table, Budget(max_step_tokens=64, max_prefill_tokens=6, max_chunk_tokens=5))
    batch = BatchBuilder(block_size=BLOCK_SIZE, device=torch.device("cpu")).build(table, step)
    # Slot 2 decodes its sampled 7 at position 4, slot 1 gets a chunk of 5, and slot 0 gets the one token that is left.
    assert batch.input_ids_T.tolist() == [7, 21, 22, 23, 24, 25, 35]
    assert batch.position_ids_T.tolist() == [4, 0, 1, 2, 3, 4, 4]
    assert batch.kv_places_T.tolist() == [3 * 4, 20, 21, 22, 23, 28, 8 * 4]
    assert batch.query_starts.tolist() == [0, 1, 6, 7]
    assert batch.context_lens_R.tolist() == [5, 5, 5]
    assert batch.block_tables_RB.tolist() == [[9, 3], [5, 7], [4, 8]]
    assert batch.logit_rows_N.tolist() == [0]
    assert (batch.max_query_len, batch.max_context_len) == (5, 5)
    assert batch.input_ids_T.dtype == batch.position_ids_T.dtype == batch.kv_places_T.dtype == torch.int64
    assert batch.query_starts.dtype == batch.context_lens_R.dtype == batch.block_tables_RB.dtype == torch.int32


def test_tensors_of_a_step_in_which_all_decode() -> None:
    table = make_table()
    table.admit(admit(2, [11, 12, 13, 14], blocks=[9, 3], max_new=4))
    table.admit(admit(0, [31], blocks=[5], max_new=4))
    builder = BatchBuilder(block_size=BLOCK_SIZE, device=torch.device("cpu"))
    for turn in range(3):
        step = compose_step(table, WIDE)
        assert step.is_decode == (turn > 0)
        batch = builder.build(table, step)
        finish(table, step)
    assert rows(step) == [[0, 2, 1], [2, 5, 1]]
    assert step.samples_R.tolist() == [True, True]
    assert batch.input_ids_T.tolist() == [7, 7]
    assert batch.position_ids_T.tolist() == [2, 5]
    assert batch.kv_places_T.tolist() == [5 * 4 + 2, 3 * 4 + 1]
    assert batch.query_starts.tolist() == [0, 1, 2]
    assert batch.context_lens_R.tolist() == [3, 6]
    assert batch.block_tables_RB.tolist() == [[5, NUM_BLOCKS], [9, 3]]
    assert batch.logit_rows_N.tolist() == [0, 1]
    assert batch.slots_R is not None
    assert batch.slots_R.tolist() == [0, 2]
    assert (batch.max_query_len, batch.max_context_len) == (1, 6)
    assert batch.input_ids_T.dtype == batch.position_ids_T.dtype == batch.kv_places_T.dtype == torch.int64
    assert batch.query_starts.dtype == batch.context_lens_R.dtype == batch.block_tables_RB.dtype == torch.int32


def test_rule_15_tables_are_padded_with_the_scratch_block() -> None:
    table = make_table()
    table.admit(admit(0, [1] * 10, blocks=[1, 2, 3]))
    table.admit(admit(1, [1, 2], blocks=[4]))
    batch = BatchBuilder(block_size=BLOCK_SIZE, device=torch.device("cpu")).build(table, compose_step(table, WIDE))
    assert batch.block_tables_RB.tolist() == [[1, 2, 3], [4, NUM_BLOCKS, NUM_BLOCKS]]


def test_a_table_wider_than_at_first_keeps_its_blocks() -> None:
    table = make_table()
    table.admit(admit(1, [3] * 80, blocks=range(2, 22), max_new=1))
    assert table.blocks_of(1).tolist() == list(range(2, 22))
    table.grant(1, ids([30, 31]))
    assert table.blocks_of(1).tolist() == [*range(2, 22), 30, 31]
    table.end(1)
    assert table.is_empty
    assert set(table.block_tables_SB.flatten().tolist()) == {NUM_BLOCKS}
    assert table.num_holders.tolist() == [0] * NUM_BLOCKS


@pytest.mark.parametrize("max_new", [1, 5])
def test_a_slot_is_a_function_of_its_admit(max_new: int) -> None:
    table = make_table()
    table.admit(admit(1, [3, 4, 5], output=[6], max_new=1 + max_new))
    assert table.tokens_of(1, end=4).tolist() == [3, 4, 5, 6]
    assert (table.num_tokens[1], table.num_computed[1], table.last_tokens[1]) == (4, 0, 6)
    assert table.max_tokens[1] == 4 + max_new
    assert table.is_prefilling[1]


@pytest.mark.parametrize("chunk", [2, 64])
def test_rule_19_a_slot_whose_grammar_is_not_ready_leaves_the_last_token_of_its_prompt(chunk: int) -> None:
    table = make_table()
    table.admit(admit(0, [1, 2, 3], output=[4, 5], grammar=Grammar("start: /a/")))
    table.admit(admit(1, [9]))
    budget = Budget(max_step_tokens=64, max_prefill_tokens=64, max_chunk_tokens=chunk)
    step = compose_step(table, budget)
    assert rows(step) == [[0, 0, 4], [1, 0, 1]]
    assert step.samples_R.tolist() == [False, True]
    finish(table, step)
    step = compose_step(table, budget)
    assert rows(step) == [[1, 1, 1]]  # slot 0 waits, and slot 1 decodes
    assert step.starved_slots.tolist() == []
    finish(table, step)
    table.release([0])
    step = compose_step(table, budget)
    assert rows(step) == [[1, 2, 1], [0, 4, 1]]
    assert step.samples_R.tolist() == [True, True]


def encoder_table(*prompts: tuple[int, int]) -> SlotTable:
    """Return a table with slots 0, 1 ..., each with (tokens for the encoder, tokens for the decoder)."""
    table = make_table()
    for slot, (num_encoder, num_decoder) in enumerate(prompts):
        request = admit(slot, [5] * (num_encoder + num_decoder), max_new=9)
        table.admit(replace(request, num_encoder_tokens=num_encoder))
    return table


def test_rule_16_what_an_encoder_reads_is_in_one_step_however_small_the_chunks() -> None:
    table = encoder_table((9, 1), (3, 5))
    narrow = Budget(max_step_tokens=14, max_prefill_tokens=13, max_chunk_tokens=2)
    step = compose_step(table, narrow)
    assert rows(step) == [[0, 0, 10], [1, 0, 3]]  # 9 and 3 for the encoder, then the rest of the budget in order
    assert step.samples_R.tolist() == [True, False]
    finish(table, step)
    assert rows(compose_step(table, narrow)) == [[0, 10, 1], [1, 3, 5]]


def test_rule_16_what_does_not_fit_waits_and_others_use_the_rest() -> None:
    table = encoder_table((6, 1), (9, 1), (2, 1))
    budget = Budget(max_step_tokens=10, max_prefill_tokens=10, max_chunk_tokens=4)
    step = compose_step(table, budget)
    assert rows(step) == [[0, 0, 7], [2, 0, 3]]
    finish(table, step)
    # Slot 1 is the first prefill now, but the tokens of the other two slots leave no room until one of them has ended.
    step = compose_step(table, budget)
    assert rows(step) == [[0, 7, 1], [2, 3, 1]]
    finish(table, step)
    table.end(0)
    assert rows(compose_step(table, budget)) == [[2, 4, 1], [1, 0, 9]]


def test_rule_19_a_slot_whose_grammar_is_not_ready_has_its_encoder_read() -> None:
    table = make_table()
    request = admit(0, [5] * 6, grammar=Grammar("start: /a/"))
    table.admit(replace(request, num_encoder_tokens=5))
    step = compose_step(table, WIDE)
    assert rows(step) == [[0, 0, 5]]
    assert not step.samples_R.any()


def test_tensors_name_what_the_encoder_reads() -> None:
    table = encoder_table((3, 1), (5, 2))
    builder = BatchBuilder(block_size=BLOCK_SIZE, device=torch.device("cpu"), has_encoder=True)
    for _ in range(2):  # a prefill, then a decode
        step = compose_step(table, WIDE)
        batch = builder.build(table, step)
        assert batch.encoder_lens_R is not None
        assert batch.encoder_lens_R.tolist() == [3, 5]
        finish(table, step)


def test_rule_19_a_prompt_of_one_token_waits_whole() -> None:
    table = make_table()
    table.admit(admit(0, [1], grammar=Grammar("start: /a/")))
    assert compose_step(table, WIDE).is_empty
    table.release([0])
    assert rows(compose_step(table, WIDE)) == [[0, 0, 1]]
    table.end(0)
    table.admit(admit(0, [1, 2], request_id=5))  # the next occupant has no grammar
    assert rows(compose_step(table, WIDE)) == [[0, 0, 2]]


DIGEST = b"d" * 16


def spans(*ranges: tuple[int, int]) -> tuple[MediaSpan, ...]:
    """Return spans of one image from the first to before the second number of each pair."""
    found: list[MediaSpan] = []
    for start, end in ranges:
        found.append(MediaSpan(DIGEST, start, end - start, sum(span.num_tokens for span in found)))
    return tuple(found)


def test_rule_33_a_slot_computes_up_to_the_first_span_whose_rows_are_not_there() -> None:
    table = decoding_table(3)
    table.admit(replace(admit(0, [5] * 12, max_new=4), media=spans((2, 5), (7, 9))))
    assert rows(compose_step(table, WIDE)) == [[3, 2, 1], [0, 0, 2]]
    table.advance(ids([0]), ids([2]))
    step = compose_step(table, WIDE)
    assert rows(step) == [[3, 2, 1]]
    assert step.is_decode  # a slot that waits costs the others nothing
    assert not len(step.starved_slots)
    table.set_ready(0, 7)
    assert rows(compose_step(table, WIDE)) == [[3, 2, 1], [0, 2, 5]]
    table.set_ready(0, NO_BOUND)
    step = compose_step(table, WIDE)
    assert rows(step) == [[3, 2, 1], [0, 2, 10]]
    assert step.samples_R.tolist() == [True, True]


@pytest.mark.parametrize(("cached", "bound"), [(0, 2), (4, 2), (8, NO_BOUND)])
def test_rule_33_cached_spans_need_no_rows(cached: int, bound: int) -> None:
    table = make_table()
    table.admit(replace(admit(0, [5] * 12, max_new=4, cached=cached), media=spans((2, 8))))
    assert table.ready_until[0] == bound
    assert compose_step(table, WIDE).is_empty == (cached == 4)  # a hit that ends inside a span waits for the rest


def uncut_prompts(table: SlotTable, *prompts: tuple[int, tuple[TokenRange, ...]]) -> None:
    """Admit prompts of so many tokens, with these ranges, to the slots 0, 1 ..."""
    for slot, (num_tokens, ranges) in enumerate(prompts):
        table.admit(admit(slot, [5] * num_tokens, max_new=1), uncut=ranges)


def test_rule_16_a_range_is_in_one_step_however_small_the_chunks() -> None:
    table = make_table()
    uncut_prompts(table, (12, (TokenRange(2, 9),)))
    small = Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=3)
    assert rows(compose_step(table, small)) == [[0, 0, 2]]  # the range would not fit behind the two tokens
    table.advance(ids([0]), ids([2]))
    assert rows(compose_step(table, small)) == [[0, 2, 8]]  # the range and, in the second pass, one token more


def test_rule_16_a_range_that_does_not_fit_waits_and_others_use_the_rest() -> None:
    table = make_table()
    uncut_prompts(table, (6, ()), (8, (TokenRange(0, 5),)), (4, ()))
    step = compose_step(table, Budget(max_step_tokens=10, max_prefill_tokens=10, max_chunk_tokens=10))
    assert rows(step) == [[0, 0, 6], [2, 0, 4]]


def test_rule_16_the_rest_of_a_range_behind_a_hit_is_whole_too() -> None:
    table = make_table()
    table.admit(admit(0, [5] * 14, max_new=1, cached=4), uncut=(TokenRange(2, 10),))
    step = compose_step(table, Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=2))
    assert rows(step) == [[0, 4, 8]]  # six tokens of the range, and two in the second pass


@settings(deadline=None, max_examples=150)
@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 24), st.lists(st.integers(0, 24), max_size=4), st.integers(0, 2)),
        min_size=1,
        max_size=NUM_SLOTS,
    ),
    budget=st.integers(12, 30),
    chunk=st.integers(1, 12),
)
def test_rule_16_no_step_cuts_a_range_and_every_prompt_ends(
    prompts: list[tuple[int, list[int], int]], budget: int, chunk: int
) -> None:
    """Prompts of up to three callers with ranges of at most 12 tokens, which fit every budget here."""
    table = make_table()
    ranges: dict[int, list[tuple[int, int]]] = {}
    for slot, (num_tokens, borders, caller) in enumerate(prompts):
        ends = sorted({min(border, num_tokens) for border in borders})
        ranges[slot] = [(a, min(b, a + 12)) for a, b in zip(ends[::2], ends[1::2], strict=False)]
        admitted = replace(
            admit(slot, [5] * num_tokens, max_new=1, blocks=range(8 * slot, 8 * slot + 7)), caller=caller
        )
        table.admit(admitted, uncut=tuple(TokenRange(a, b) for a, b in ranges[slot]))
    wide = Budget(max_step_tokens=budget, max_prefill_tokens=budget, max_chunk_tokens=chunk)
    for _ in range(200):
        step = compose_step(table, wide)
        if step.is_empty:
            break
        assert step.num_tokens <= budget
        for slot, start, count in rows(step):
            for first, end in ranges[slot]:
                assert not first < start < end
                assert not first < start + count < end
        finish(table, step)
        for slot in step.slots_R[step.samples_R].tolist():
            table.end(slot)
    assert not table.num_occupied


def test_tensors_name_the_rotary_positions_and_the_ends_of_ranges() -> None:
    table = decoding_table(3)
    positions = np.stack([np.arange(6) + 10 * axis for axis in range(3)])
    table.admit(
        admit(0, [5] * 6, max_new=4), uncut=(TokenRange(1, 3), TokenRange(3, 5)), rope=RopeRow(positions, delta=-2)
    )
    builder = BatchBuilder(block_size=BLOCK_SIZE, device=torch.device("cpu"), has_span_ends=True)
    batch = builder.build(table, compose_step(table, WIDE))
    assert batch.rope_positions_3T is not None
    assert batch.rope_positions_3T.tolist() == [[2, *(np.arange(6) + 10 * axis).tolist()] for axis in range(3)]
    assert batch.span_ends_T is not None
    assert batch.span_ends_T.tolist() == [0, 0, 3, 3, 5, 5, 0]
    finish(table, compose_step(table, WIDE))
    batch = builder.build(table, compose_step(table, WIDE))  # the output stands at its index and the delta
    assert batch.rope_positions_3T is not None
    # By slots: slot 0 computes its token 6, and slot 3 its token 3.
    assert batch.rope_positions_3T.tolist() == [[4, 3]] * 3
    assert batch.span_ends_T is None
    table.end(0)
    batch = builder.build(table, compose_step(table, WIDE))
    assert batch.rope_positions_3T is None


@pytest.mark.parametrize(("start", "end"), [(0, 3), (4, 8), (6, 9)])
def test_rotary_positions_go_on_behind_the_prompt(start: int, end: int) -> None:
    """A request that comes back has output, which one chunk may compute with the end of the prompt."""
    table = make_table()
    positions = np.stack([np.arange(6) * 2 + axis for axis in range(3)])
    table.admit(admit(0, [5] * 6, output=[7] * 3, max_new=9), rope=RopeRow(positions, delta=4))
    expected = [[index * 2 + axis if index < 6 else index + 4 for index in range(start, end)] for axis in range(3)]
    assert table.rope_positions(0, start=start, end=end).tolist() == expected
