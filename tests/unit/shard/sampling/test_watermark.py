"""The green lists are even and fixed for good, and the detector counts what its formula says."""

import itertools
import math

import pytest
import torch
from textmill_shard.sampling.watermark import Watermark, WatermarkKey, detect_watermark, is_green
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import CPU, Seat, random_logits, rows_of, staged_scores

VOCAB = 5000
KEY = WatermarkKey(gamma=0.25, delta=1.5)
MARKED = SamplingParams(watermark=True)


def green_row(previous: int, gamma: float) -> torch.Tensor:
    return is_green(torch.tensor(previous), torch.arange(VOCAB), gamma)


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 0.9])
def test_a_share_gamma_of_the_vocabulary_is_green(gamma: float) -> None:
    deviation = math.sqrt(gamma * (1 - gamma) / VOCAB)
    shares = [float(green_row(previous, gamma).float().mean()) for previous in range(200)]
    assert all(abs(share - gamma) < 4.5 * deviation for share in shares)
    assert abs(sum(shares) / 200 - gamma) < 4.5 * deviation / math.sqrt(200)


def test_lists_of_neighbouring_tokens_have_nothing_to_do_with_each_other() -> None:
    rows = torch.stack([green_row(previous, 0.5) for previous in range(64)]).float()
    agreement = (rows @ rows.T + (1 - rows) @ (1 - rows.T)) / VOCAB
    agreement.fill_diagonal_(0.5)
    assert float((agreement - 0.5).abs().max()) < 5 / (2 * math.sqrt(VOCAB))


def test_a_larger_gamma_keeps_what_was_green() -> None:
    assert bool((green_row(7, 0.3) <= green_row(7, 0.6)).all())


def test_lists_do_not_change_between_versions() -> None:
    # From a calculation apart, with Python's integers: texts marked today are to be recognised later.
    def mix(word: int) -> int:
        word ^= word >> 16
        word = word * 0x7FEB352D % 2**32
        word ^= word >> 15
        word = word * 0x846CA68B % 2**32
        return word ^ (word >> 16)

    for previous, token in ((0, 0), (1, 0), (0, 1), (49151, 17), (17, 49151)):
        score = mix(mix(token + 1) ^ mix(previous ^ 0x7E87313D))
        for gamma in (0.25, 0.5, 0.75):
            assert bool(is_green(torch.tensor(previous), torch.tensor(token), gamma)) == (score < gamma * 2**32)


def test_the_score_is_that_of_the_paper() -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    pairs = set(itertools.pairwise(tokens))
    num_green = sum(bool(green_row(previous, 0.25)[token]) for previous, token in pairs)
    evidence = detect_watermark(tokens, gamma=0.25)
    assert (evidence.num_scored, evidence.num_green) == (len(pairs), num_green)
    expected = (num_green - 0.25 * len(pairs)) / math.sqrt(len(pairs) * 0.25 * 0.75)
    assert evidence.z_score == pytest.approx(expected)
    assert evidence.p_value == pytest.approx(0.5 * (1 - math.erf(expected / math.sqrt(2))))


def test_pairs_that_come_again_count_once() -> None:
    once = detect_watermark([1, 2, 3])
    assert detect_watermark([1, 2, 3, 1, 2, 3, 1, 2, 3]).num_scored == once.num_scored + 1
    assert detect_watermark([2, 3], previous_id=1) == once


def test_green_text_is_found_and_other_text_is_not() -> None:
    generator = torch.Generator().manual_seed(5)
    green, plain = [0], [0]
    for _ in range(200):
        choices = torch.randint(VOCAB, (8,), generator=generator)
        is_good = green_row(green[-1], 0.5)[choices]
        green.append(int(choices[is_good][0]) if bool(is_good.any()) else int(choices[0]))
        plain.append(int(choices[0]))
    assert detect_watermark(green).z_score > 10
    assert abs(detect_watermark(plain).z_score) < 3


@pytest.mark.parametrize("gamma", [0.0, 1.0, -1.0, math.nan])
def test_a_gamma_that_is_no_share_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        detect_watermark([1, 2], gamma=gamma)


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_text_without_a_pair_is_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="wanted at least 2"):
        detect_watermark(tokens)


def expected_scores(logits: torch.Tensor, last_ids: dict[int, int]) -> torch.Tensor:
    expected = logits.clone()
    for row, last in last_ids.items():
        for token in range(logits.shape[1]):
            expected[row, token] += 1.5 * bool(is_green(torch.tensor(last), torch.tensor(token), 0.25))
    return expected


def test_the_watermark_raises_the_green_list_of_the_last_token() -> None:
    logits = random_logits(3)
    seats = [Seat(MARKED, [7, 3]), Seat(SamplingParams(), [7, 3]), Seat(MARKED, [7], [3])]
    found = staged_scores(logits, seats, Watermark(num_slots=3, device=CPU, key=KEY))
    torch.testing.assert_close(found, expected_scores(logits, {0: 3, 2: 3}))


def test_the_first_token_behind_a_prompt_of_images_alone_has_a_green_list_too() -> None:
    logits = random_logits(1)
    found = staged_scores(logits, [Seat(MARKED, [])], Watermark(num_slots=1, device=CPU, key=KEY))
    torch.testing.assert_close(found, expected_scores(logits, {0: 0}))


def test_the_token_that_was_sampled_last_is_the_next_key() -> None:
    logits = random_logits(2)
    stage = Watermark(num_slots=2, device=CPU, key=KEY)
    staged_scores(logits, [Seat(MARKED, [3, 7], [5]), Seat(MARKED, [4])], stage)
    rows = rows_of([0, 1], is_all=True)
    stage.append(rows, torch.tensor([9, 8]))
    scores = logits.clone()
    stage.apply(scores, rows)
    torch.testing.assert_close(scores, expected_scores(logits, {0: 9, 1: 8}))
