"""Windows and chunks are found by asking transformers' own predicates."""

import pytest
import torch
from textmill_shard.probing.mask_pattern import MaskPattern, MaskPredicate, UnknownMaskError, find_mask_pattern
from transformers.masking_utils import (
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from tests.fakes.valued_gpu import valued_gpu


def test_causal() -> None:
    assert find_mask_pattern(causal_mask_function, max_tokens=512) == MaskPattern()


@pytest.mark.parametrize("window", [1, 2, 12, 128, 511])
def test_window(window: int) -> None:
    predicate = sliding_window_causal_mask_function(window)
    assert find_mask_pattern(predicate, max_tokens=512) == MaskPattern(window_tokens=window)


@pytest.mark.parametrize("chunk", [2, 12, 100, 128, 300])
def test_chunk(chunk: int) -> None:
    predicate = chunked_causal_mask_function(chunk, torch.zeros(1, dtype=torch.int64))
    assert find_mask_pattern(predicate, max_tokens=512) == MaskPattern(chunk_tokens=chunk)


def test_a_chunk_of_a_model_on_a_gpu_is_found_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' predicate subtracts the padding of the text, a tensor of the model, from the indices."""
    with valued_gpu(monkeypatch):
        predicate = chunked_causal_mask_function(12, torch.zeros(1, dtype=torch.int64, device="cuda"))
        found = find_mask_pattern(predicate, max_tokens=64, device=torch.device("cuda"))
        assert found == MaskPattern(chunk_tokens=12)
        with pytest.raises(RuntimeError, match="same device"):
            find_mask_pattern(predicate, max_tokens=64)


@pytest.mark.parametrize("predicate", [sliding_window_causal_mask_function(600), causal_mask_function])
def test_window_beyond_the_longest_text_is_none(predicate: object) -> None:
    assert find_mask_pattern(predicate, max_tokens=512) == MaskPattern()  # type: ignore[arg-type]


def every_third(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query - key) % 3 == 0


def ahead(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key <= query + 2


def growing(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key >= query // 2


@pytest.mark.parametrize(
    "predicate", [and_masks(causal_mask_function, every_third), ahead, and_masks(causal_mask_function, growing)]
)
def test_anything_else_is_not_guessed(predicate: object) -> None:
    with pytest.raises(UnknownMaskError):
        find_mask_pattern(predicate, max_tokens=512)  # type: ignore[arg-type]


def mask_of(predicate: MaskPredicate, length: int) -> torch.Tensor:
    zero, places = torch.zeros(1, dtype=torch.int64), torch.arange(length)
    return predicate(zero, zero, places[:, None], places[None, :])


@pytest.mark.parametrize("window", [None, 4])
def test_a_span_shows_in_the_mask_of_transformers(window: int | None) -> None:
    base = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    pattern, span = MaskPattern(window_tokens=window), range(3, 6)
    blocks = torch.tensor([[-1, -1, -1, 0, 0, 0, -1, -1]])
    assert pattern.sees_span(mask_of(base, 8), span) is False
    assert pattern.sees_span(mask_of(or_masks(base, blockwise_overlay(blocks)), 8), span) is True
    assert pattern.sees_span(mask_of(or_masks(base, blockwise_overlay(blocks)), 8), range(3, 7)) is None
    assert pattern.sees_span(mask_of(ahead, 8), span) is None
    # Gemma3 cuts a span that is longer than the window.
    within = and_masks(or_masks(causal_mask_function, blockwise_overlay(blocks)), lambda b, h, q, k: k > q - 2)
    assert MaskPattern(window_tokens=2).sees_span(mask_of(within, 8), span) is True
