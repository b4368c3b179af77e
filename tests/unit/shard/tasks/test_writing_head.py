"""The probability of a text that was written, with numbers that can be counted by hand."""

import pytest
import torch
from textmill_shard.tasks.writing_head import text_probabilities

END = 3


def step(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    """Return logits whose softmax has these probabilities."""
    return torch.tensor(rows).log()


def test_tokens_behind_the_end_token_do_not_count() -> None:
    logits = (
        step((0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25)),
        step((0.125, 0.5, 0.25, 0.125), (0.25, 0.25, 0.0625, 0.4375)),
        step((0.5, 0.25, 0.125, 0.125), (0.9, 0.05, 0.025, 0.025)),
    )
    # Behind the first token, which the model was given, a text of three tokens and one that ends with its second token.
    sequences = torch.tensor([[2, 0, 1, 2], [2, 2, END, 0]])
    found = text_probabilities(logits, sequences, None, end_ids=(END, None))
    assert found == pytest.approx([0.5 * 0.5 * 0.125, 0.25 * 0.4375])


def test_a_beam_takes_its_tokens_from_the_rows_of_its_past() -> None:
    # Two beams of one text. The best text takes its first token from beam 0, its second from beam 1, and then ends.
    logits = (
        step((0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25)),
        step((0.25, 0.25, 0.25, 0.25), (0.125, 0.125, 0.25, 0.5)),
        step((0.25, 0.25, 0.25, 0.25), (0.25, 0.25, 0.25, 0.25)),
    )
    sequences = torch.tensor([[2, 0, END]])
    beams = torch.tensor([[0, 1, -1]])
    assert text_probabilities(logits, sequences, beams, end_ids=(END,)) == pytest.approx([0.5 * 0.5])


def test_a_beam_that_ended_before_the_longest_one_has_no_further_tokens() -> None:
    even = step((0.25, 0.25, 0.25, 0.25), (0.25, 0.25, 0.25, 0.25))
    sequences = torch.tensor([[2, 0, 1, 0], [2, 1, 1, 1]])
    beams = torch.tensor([[0, 1, -1], [0, 0, 1]])
    found = text_probabilities((even, even, even), sequences, beams, end_ids=(None,))
    assert found == pytest.approx([0.25**2, 0.25**3])
