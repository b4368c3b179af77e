"""The attention kernel agrees with the reference in Triton's interpreter, for each row of the table of variants.

The tiles are those of the row, and the numbers are fp32: other numbers than fp32 the interpreter multiplies wrongly.
"""

from collections.abc import Sequence
from itertools import accumulate, product

import pytest
import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.model.kv_scales import KvScales, store
from textmill_shard.triton_kernels.cases import SCORES, SPAN_SCORES, AttentionCase
from textmill_shard.triton_kernels.interface import PagedIndices
from textmill_shard.triton_kernels.tiles import Tile, attention_tile
from textmill_shard.triton_kernels.variants import VARIANTS, Variant

from tests.fakes.kernel_cases import (
    DECODES,
    MIXED,
    STORED_TYPES,
    Shape,
    error_of,
    interpreted_kernels,
    rule_of,
    run_attention,
)
from tests.fakes.native_cases import Piece
from tests.fakes.plain_kernels import H100_MULTIPROCESSORS

# Sums in another order differ by a few of the 2**-24 that fp32 rounds by, relative to the largest value.
TOLERANCE = 2e-6
ROWS = [variant for variant in VARIANTS if isinstance(variant.case, AttentionCase)]
MULTIPROCESSORS = 24  # so many that contexts are cut


def parts_of_tiles(tile: Tile, group: int, pieces: Sequence[Piece]) -> list[int]:
    """Return the parts of each tile of one key/value head."""
    starts = torch.tensor([0, *accumulate(piece.count for piece in pieces)], dtype=torch.int32)
    lens = torch.tensor([piece.before + piece.count for piece in pieces], dtype=torch.int32)
    plan = interpreted_kernels(MULTIPROCESSORS).plan_tiles(
        starts, lens, tile, group=group, num_kv_heads=1, num_tokens=int(starts[-1])
    )
    parts: list[int] = (plan.parts_before.diff() + 1).tolist()
    return parts


@pytest.mark.parametrize("variant", ROWS, ids=lambda variant: variant.name)
def test_each_variant_of_the_table_agrees_with_the_reference(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, AttentionCase)
    shape = Shape(case.group, case.key_dim, case.value_dim, num_kv_heads=1)
    pieces = DECODES if case.is_decode else MIXED
    parts = parts_of_tiles(case.tile, case.group, pieces)
    assert min(parts) == 1 < max(parts), "some contexts are cut where this is wanted, and others are not"
    both = run_attention(
        shape,
        case.tile,
        rule_of(case.scores, shape),
        pieces=pieces,
        num_multiprocessors=MULTIPROCESSORS if case.is_split else 0,
        stored=None if case.stored is None else STORED_TYPES[case.stored],
    )
    assert error_of(both) < TOLERANCE


@pytest.mark.parametrize("stored", STORED_TYPES.values(), ids=str)
def test_each_head_has_a_scale_of_its_own(stored: torch.dtype) -> None:
    """A kernel that took the scale of another head would be off by a factor of two or more."""
    shape = Shape(group=2, key_dim=16, value_dim=16, num_kv_heads=3)
    tile = attention_tile(itemsize=4, group=2, key_dim=16, value_dim=16, max_query_len=70)
    both = run_attention(shape, tile, rule_of((), shape), stored=stored)
    assert error_of(both) < TOLERANCE
    exact, _ = run_attention(shape, tile, rule_of((), shape))
    assert 0.001 < error_of((both[0], exact)) < 0.2  # 8 bits were read, and they are those of the same numbers


def test_the_table_has_each_option_alone_and_all_together() -> None:
    found = {variant.case.scores for variant in ROWS if isinstance(variant.case, AttentionCase)}
    assert found == {(), *((score,) for score in SCORES), SCORES, *SPAN_SCORES}


def test_the_table_has_decodes_and_chunks_whole_and_split() -> None:
    """Whether contexts are split depends on the number of programs, and not on the kind of the step."""
    cases = [variant.case for variant in ROWS if isinstance(variant.case, AttentionCase)]
    both = (True, False)
    for stored in (None, "fp8e4nv", "fp8e5"):
        found = {(case.is_decode, case.is_split) for case in cases if case.stored == stored}
        assert found == set(product(both, both))
    for scores in (SCORES, *SPAN_SCORES):
        assert {case.is_split for case in cases if case.scores == scores and not case.is_decode} == set(both)


@pytest.mark.parametrize("score", SCORES)
def test_each_option_changes_the_result(score: str) -> None:
    """An option that neither the kernel nor the reference computed would agree with itself."""
    shape = Shape(group=2, key_dim=16, value_dim=16)
    tile = attention_tile(itemsize=4, group=2, key_dim=16, value_dim=16, max_query_len=1)
    plain, _ = run_attention(shape, tile, rule_of((), shape), pieces=DECODES)
    changed, _ = run_attention(shape, tile, rule_of((score,), shape), pieces=DECODES)
    assert float((plain - changed).abs().max()) > 0.01


def test_a_span_changes_the_result_of_chunks() -> None:
    shape = Shape(group=2, key_dim=16, value_dim=16)
    tile = attention_tile(itemsize=4, group=2, key_dim=16, value_dim=16, max_query_len=70)
    plain, _ = run_attention(shape, tile, rule_of((), shape))
    changed, expected = run_attention(shape, tile, rule_of(("spans",), shape))
    assert float((plain - changed).abs().max()) > 0.01
    assert error_of((changed, expected)) < TOLERANCE


@pytest.mark.parametrize(
    ("num_multiprocessors", "scores"),
    [(0, SCORES), (MULTIPROCESSORS, ()), (H100_MULTIPROCESSORS, SCORES)],
    ids=["whole", "in parts of many turns", "in parts of one turn"],
)
def test_contexts_of_one_and_of_five_thousand_tokens(num_multiprocessors: int, scores: tuple[str, ...]) -> None:
    shape = Shape(group=4, key_dim=64, value_dim=64, num_kv_heads=1)
    pieces = (Piece(0, 1), Piece(4_999, 1), Piece(4_997, 3))
    tile = attention_tile(itemsize=2, group=4, key_dim=64, value_dim=64, max_query_len=1)
    both = run_attention(shape, tile, rule_of(scores, shape), pieces=pieces, num_multiprocessors=num_multiprocessors)
    assert error_of(both) < TOLERANCE


@pytest.mark.parametrize("block_size", [1, 4, 48])
def test_block_sizes_that_do_not_fit_the_tile(block_size: int) -> None:
    shape = Shape(group=3, key_dim=24, value_dim=40, block_size=block_size)
    tile = attention_tile(itemsize=4, group=3, key_dim=24, value_dim=40, max_query_len=70)
    assert error_of(run_attention(shape, tile, rule_of((), shape))) < TOLERANCE


@pytest.mark.parametrize(
    ("group", "dim", "window_tokens", "chunk_tokens", "max_query_len"),
    [(5, 112, 1, None, 1), (6, 80, 3, 5, 70), (3, 100, None, 7, 70), (71, 64, 17, None, 1)],
)
def test_windows_and_chunks_shorter_than_a_block_and_groups_of_any_size(
    group: int, dim: int, window_tokens: int | None, chunk_tokens: int | None, max_query_len: int
) -> None:
    shape = Shape(group, dim, dim, num_kv_heads=1)
    tile = attention_tile(itemsize=4, group=group, key_dim=dim, value_dim=dim, max_query_len=max_query_len)
    rule = AttentionRule(scaling=dim**-0.5, window_tokens=window_tokens, chunk_tokens=chunk_tokens)
    assert error_of(run_attention(shape, tile, rule, num_multiprocessors=MULTIPROCESSORS)) < TOLERANCE


@pytest.mark.parametrize("num_multiprocessors", [0, MULTIPROCESSORS])
def test_padding_behind_the_sequences_becomes_zeros(num_multiprocessors: int) -> None:
    shape = Shape(group=4, key_dim=16, value_dim=16)
    tile = attention_tile(itemsize=2, group=4, key_dim=16, value_dim=16, max_query_len=1)
    out, expected = run_attention(
        shape, tile, rule_of(SCORES, shape), pieces=DECODES, num_multiprocessors=num_multiprocessors, num_padding=17
    )
    assert error_of((out, expected)) < TOLERANCE
    assert torch.equal(out[-17:], torch.zeros(17, 8, 16))


@pytest.mark.parametrize("num_multiprocessors", [0, MULTIPROCESSORS])
def test_large_scores_do_not_overflow(num_multiprocessors: int) -> None:
    """Scores of some thousands carry an absolute error of 1e-4, which the exponential makes relative."""
    shape = Shape(group=4, key_dim=64, value_dim=64)
    tile = attention_tile(itemsize=2, group=4, key_dim=64, value_dim=64, max_query_len=70)
    rule = AttentionRule(scaling=40.0)
    both = run_attention(shape, tile, rule, pieces=DECODES, num_multiprocessors=num_multiprocessors)
    assert error_of(both) < 1e-3


def test_one_long_context_among_short_ones_is_computed_by_many_programs() -> None:
    """A program for each row alone would leave the others waiting for the longest."""
    pieces = (*(Piece(30 + row, 1) for row in range(20)), Piece(3_000, 1), Piece(7, 1))
    shape = Shape(group=4, key_dim=32, value_dim=32, num_kv_heads=1)
    tile = attention_tile(itemsize=2, group=4, key_dim=32, value_dim=32, max_query_len=1)
    # All contexts have 3,819 tokens, so that each of the 48 further parts is of 80, and the long one has 3,001.
    assert sorted(parts_of_tiles(tile, 4, pieces))[-2:] == [1, 38]
    both = run_attention(shape, tile, rule_of((), shape), pieces=pieces, num_multiprocessors=MULTIPROCESSORS)
    assert error_of(both) < TOLERANCE


def test_places_beyond_two_to_the_31_elements_are_read() -> None:
    """Pools of a large GPU have more elements than 32 bits count. What no test touches takes no memory."""
    block_size, dim = 16, 16
    num_blocks = 2**31 // (block_size * dim) + 2
    small = [store(torch.randn(2, block_size, 1, dim), torch.ones(1), torch.float8_e5m2) for _ in range(2)]
    large = [torch.empty(num_blocks, block_size, 1, dim, dtype=torch.float8_e5m2) for _ in range(2)]
    for pool, blocks in zip(large, small, strict=True):
        pool[-2:].view(torch.uint8).copy_(blocks.view(torch.uint8))
    query_THD = torch.randn(1, 1, dim)
    starts, lens = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([21], dtype=torch.int32)
    tile = attention_tile(itemsize=4, group=1, key_dim=dim, value_dim=dim, max_query_len=1)
    tiles = interpreted_kernels().plan_tiles(starts, lens, tile, group=1, num_kv_heads=1, num_tokens=1)
    scales, rule = KvScales(torch.ones(1), torch.ones(1)), AttentionRule(scaling=1.0)
    found, expected = (
        interpreted_kernels().attention(
            query_THD, *pools, PagedIndices(starts, lens, torch.tensor([table], dtype=torch.int32)), tiles, rule, scales
        )
        for pools, table in ((large, [num_blocks - 1, num_blocks - 2]), (small, [1, 0]))
    )
    assert torch.equal(found, expected)
    assert bool(found.abs().max() > 0)
