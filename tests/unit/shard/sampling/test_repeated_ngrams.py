"""N-grams that stand once: the stage against transformers' logits processors."""

import numpy as np
import pytest
import torch
from textmill_shard.sampling.repeated_ngrams import RepeatedNgrams
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import EncoderNoRepeatNGramLogitsProcessor, NoRepeatNGramLogitsProcessor

from tests.fakes.sampling_hand import CPU, Seat, random_logits, rows_of, sample, staged_scores
from tests.fakes.step_harness import ids

VOCAB = 9
TEXTS = [
    [1, 2, 3, 1, 2],
    [4, 4, 4, 4],
    [5],
    [1, 2, 1, 2, 1, 2, 1],
    [7, 8, 6, 5, 4, 3, 2, 1],
]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_scores_are_those_of_transformers(size: int) -> None:
    params = SamplingParams(no_repeat_ngram_size=size)
    seats = [Seat(params, text[:2], text[2:]) for text in TEXTS]
    logits = random_logits(len(seats), vocab=VOCAB)
    found = staged_scores(logits, seats, RepeatedNgrams(num_slots=len(seats), device=CPU))
    for row, text in enumerate(TEXTS):
        expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor([text]), logits[row : row + 1].clone())
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_text_of_the_encoder_counts_as_in_transformers(size: int) -> None:
    source = [3, 1, 2, 4, 1, 2, 5]
    stage = RepeatedNgrams(num_slots=1, device=CPU)
    params = SamplingParams(encoder_no_repeat_ngram_size=size)
    for text in ([1, 2], [0, 1], [6, 4, 1], [2, 3]):
        stage.admit(0, params, SlotText(ids(text[:1]), ids(text[1:]), ids(source)))
        logits = random_logits(1, vocab=VOCAB)
        found = logits.clone()
        stage.apply(found, rows_of([0], is_all=True))
        processor = EncoderNoRepeatNGramLogitsProcessor(size, torch.tensor([source]))
        torch.testing.assert_close(found, processor(torch.tensor([text]), logits.clone()), rtol=0, atol=0)


def test_a_text_that_grows_forbids_what_one_that_is_admitted_forbids() -> None:
    params = SamplingParams(no_repeat_ngram_size=2)
    grown, admitted = (RepeatedNgrams(num_slots=3, device=CPU) for _ in range(2))
    rows = rows_of([2], is_all=False)
    grown.admit(2, params, SlotText(ids([1, 2])))
    text = [1, 2]
    for token in [3, 1, 2, 3] * 20:  # longer than the first width of a list
        assert not len(grown.append(rows, torch.tensor([token])))
        text.append(token)
        admitted.admit(2, params, SlotText(ids(text)))
        found, expected = torch.zeros(3, VOCAB), torch.zeros(3, VOCAB)
        grown.apply(found, rows)
        admitted.apply(expected, rows)
        assert torch.equal(found, expected)
        assert not found[:2].any()
    assert torch.isneginf(found[2]).nonzero().flatten().tolist() == [1, 3]  # 3 3 and 3 1 stand in the text


def test_a_row_without_a_possible_id_is_stuck() -> None:
    params = SamplingParams(no_repeat_ngram_size=1)
    sampled = sample(torch.zeros(2, 3), [Seat(params, [0, 1, 2]), Seat(params, [0, 1])])
    assert sampled.stuck_N is not None
    assert sampled.stuck_N.tolist() == [True, False]
    assert int(sampled.tokens_N[1]) == 2
    assert np.isfinite(sampled.tokens_N.numpy()).all()
