"""What is measured of the windows of a generation, with vocabularies of four tokens that can be checked by eye."""

import math

import pytest
import torch
from textmill_shard.tasks.window_measures import WindowMeasures
from torch import nn

START, END, NO_SPEECH, WORD = range(4)


def scores(*rows: list[float]) -> torch.Tensor:
    """Return the logarithms of probabilities, as a model's scores."""
    return torch.tensor(rows).log()


class Generation:
    """Steps of a generation, in transformers' order of calls."""

    def __init__(self) -> None:
        self.measures = WindowMeasures(start_id=START, end_id=END, no_speech_id=NO_SPEECH)
        self.head = nn.Identity()

    def begin(self, seek: int, first: list[int]) -> None:
        self.measures.begin_window(torch.tensor([[seek, 1000]]))
        self.measures.set_begin_index(len(first))

    def step(self, ids: list[list[int]], *rows: list[float], places: "torch.Tensor | None" = None) -> None:
        self.head(torch.zeros(1, 1, 4) if places is None else places)
        found = scores(*rows)
        assert self.measures(torch.tensor(ids), found) is found


def test_a_window_counts_its_end_and_looks_for_no_speech_behind_its_start() -> None:
    run = Generation()
    prompt = [WORD, WORD, START, WORD]  # two tokens of a prompt, the start, and a language
    places = torch.zeros(1, 4, 4)
    places[0, 2] = torch.tensor([0.1, 0.1, 0.6, 0.2]).log()
    with run.measures.watching(run.head):
        run.begin(300, prompt)
        run.step([prompt], [0.1, 0.2, 0.2, 0.5], places=places)
        run.step([[*prompt, WORD]], [0.1, 0.8, 0.05, 0.05])
    [found] = run.measures.windows([[*prompt, WORD, END, END]])
    assert (found.seek, found.no_speech_prob) == (300, pytest.approx(0.6))
    assert found.avg_logprob == pytest.approx((math.log(0.5) + math.log(0.8)) / 2)


def test_a_window_that_was_cut_has_no_end_but_counts_one_token_more() -> None:
    run = Generation()
    with run.measures.watching(run.head):
        run.begin(0, [START])
        run.step([[START]], [0.1, 0.2, 0.2, 0.5])
    [found] = run.measures.windows([[START, WORD]])
    assert found.avg_logprob == pytest.approx(math.log(0.5) / 2)


def test_beams_that_change_places_keep_their_probabilities() -> None:
    run = Generation()
    with run.measures.watching(run.head):
        run.begin(0, [START])
        run.step([[START], [START]], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
        run.step([[START, WORD], [START, NO_SPEECH]], [0.1, 0.6, 0.1, 0.2], [0.1, 0.1, 0.1, 0.7])
        run.step([[START, NO_SPEECH, WORD], [START, WORD, WORD]], [0.1, 0.8, 0.05, 0.05], [0.1, 0.3, 0.3, 0.3])
    ended_before, last = ([START, WORD, END], [START, NO_SPEECH, WORD, END])
    for sequence, expected in ((ended_before, (0.4, 0.6)), (last, (0.3, 0.7, 0.8))):
        [found] = run.measures.windows([sequence])
        assert found.avg_logprob == pytest.approx(sum(map(math.log, expected)) / len(expected))


def test_a_window_that_was_tried_again_counts_its_last_try_and_a_dropped_one_is_passed_over() -> None:
    run = Generation()
    with run.measures.watching(run.head):
        run.begin(0, [START])
        run.step([[START]], [0.1, 0.5, 0.2, 0.2])  # nothing was said, and transformers drops the window
        run.begin(100, [START])
        run.step([[START]], [0.1, 0.2, 0.2, 0.5])
        run.step([[START, WORD]], [0.1, 0.5, 0.2, 0.2])
        run.step([[START]], [0.1, 0.1, 0.1, 0.7])
        run.step([[START, WORD]], [0.1, 0.6, 0.1, 0.2])
    [found] = run.measures.windows([[START, WORD, END]])
    assert found.seek == 100
    assert found.avg_logprob == pytest.approx((math.log(0.7) + math.log(0.6)) / 2)
