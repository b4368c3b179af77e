"""The native paged attention agrees with attention that is written out query by query."""

from typing import Any

import pytest
import torch

from tests.fakes.attention_cases import assert_close, run_both
from tests.fakes.native_cases import Piece, native_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (9, 3), (50, 1)])
def test_query_heads_share_keys_and_values(dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    assert_close(run_both(dtype=dtype, heads=heads, kv_heads=kv_heads), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rule",
    [
        {"window_tokens": 1},
        {"window_tokens": 40},
        {"window_tokens": 100},
        {"chunk_tokens": 48},
        {"softcap": 1.5},
        {"sinks_H": torch.tensor([0.5, -2.0, 3.0, 8.0, 0.0, -50.0])},
        {"scaling": 0.7},
        {
            "window_tokens": 70,
            "softcap": 3.0,
            "sinks_H": torch.tensor([0.5, -2.0, 3.0, 8.0, 0.0, -50.0]),
        },
    ],
    ids=lambda rule: "+".join(rule),
)
def test_each_rule_of_a_layer(dtype: torch.dtype, rule: dict[str, Any]) -> None:
    assert_close(run_both(dtype=dtype, **rule), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (24, 40), (80, 80), (128, 128), (192, 128), (256, 256)])
def test_widths_that_do_not_fill_vectors(dtype: torch.dtype, key_dim: int, value_dim: int) -> None:
    assert_close(run_both(dtype=dtype, key_dim=key_dim, value_dim=value_dim), dtype)


@pytest.mark.parametrize("block_size", [1, 4, 16, 48])
def test_block_sizes_that_do_not_divide_the_tile(block_size: int) -> None:
    assert_close(run_both(block_size=block_size))


def test_one_thread_gives_the_same_as_three() -> None:
    large = (Piece(300, 200), Piece(900, 1))  # enough that the others are woken
    both = run_both(pieces=large, kernels=native_kernels(3))
    assert_close(both)
    assert torch.equal(run_both(pieces=large, kernels=native_kernels(1))[0], both[0])


def test_large_scores_do_not_overflow() -> None:
    # Scores of some thousands carry an absolute error of 1e-4, which the exponential makes relative.
    assert_close(run_both(scaling=40.0), tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [6, 100])  # some queries to an item, and one
@pytest.mark.parametrize("rule", [{}, {"window_tokens": 64}, {"softcap": 1.5}], ids=str)
def test_tokens_of_a_span_see_each_other(dtype: torch.dtype, heads: int, rule: dict[str, Any]) -> None:
    """The spans lie within a chunk, at its ends, and over the border of a tile of 64 places."""
    spans = {3: range(2, 70), 5: range(37, 64), 6: range(100, 128), 7: range(5, 7)}
    assert_close(run_both(dtype=dtype, heads=heads, kv_heads=2, spans=spans, **rule), dtype)


def test_a_span_of_one_sequence_leaves_the_others_alone() -> None:
    with_span, _ = run_both(spans={3: range(20, 50)})
    without, _ = run_both()
    changed_T = (with_span != without).flatten(1).any(dim=1)
    assert changed_T.nonzero().flatten().tolist() == [*range(3 + 20, 3 + 49)]  # the last token of a span sees no more
