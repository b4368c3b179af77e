"""Bad sequences against transformers' `NoBadWordsLogitsProcessor`, which reads the output here and not the prompt."""

import random
from collections.abc import Sequence

import torch
from textmill_shard.sampling.bad_sequences import BadSequences
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import NoBadWordsLogitsProcessor

from tests.fakes.sampling_hand import CPU, Seat, random_logits, rows_of, sample, staged_scores

VOCAB = 12


def by_transformers(logits_V: torch.Tensor, sequences: Sequence[Sequence[int]], output: Sequence[int]) -> torch.Tensor:
    process = NoBadWordsLogitsProcessor([list(one) for one in sequences])
    ids = torch.tensor([list(output)], dtype=torch.int64)
    return process(ids, logits_V.unsqueeze(0))[0]


def random_seat(rng: random.Random) -> Seat:
    count = rng.choice([0, 1, 3, 9])
    sequences = {tuple(rng.randrange(4) for _ in range(rng.choice([1, 2, 2, 3, 6]))) for _ in range(count)}
    output = [rng.randrange(4) for _ in range(rng.choice([0, 1, 2, 5, 9]))]
    return Seat(SamplingParams(bad_sequences=tuple(sorted(sequences))), [0, 1, 2, 3], output)


def test_last_ids_of_sequences_under_way_are_impossible_as_in_transformers() -> None:
    rng = random.Random(5)
    for round_ in range(60):
        seats = [random_seat(rng) for _ in range(5)]
        logits = random_logits(5, vocab=VOCAB, seed=round_)
        found = staged_scores(logits, seats, BadSequences(num_slots=5, device=CPU))
        for row, seat in enumerate(seats):
            sequences = seat.params.bad_sequences
            wanted = by_transformers(logits[row], sequences, seat.output) if sequences else logits[row]
            assert torch.equal(found[row], wanted), (sequences, seat.output)


def test_prompt_does_not_count() -> None:
    seat = Seat(SamplingParams(bad_sequences=((1, 2),)), [0, 1])
    logits = random_logits(1, vocab=VOCAB)
    assert torch.equal(staged_scores(logits, [seat], BadSequences(num_slots=1, device=CPU)), logits)


def test_state_after_tokens_is_that_of_an_admission_with_them() -> None:
    """Rule 18. Requests with more and longer sequences come while others run."""
    rng = random.Random(8)
    stage = BadSequences(num_slots=6, device=CPU)
    seats: list[Seat] = []
    for step in range(40):
        if step % 6 == 0 and len(seats) < 6:
            sequences = [[rng.randrange(3) for _ in range(1 + len(seats))] for _ in range(1 + 2 * len(seats))]
            seats.append(Seat(SamplingParams(bad_sequences=tuple(map(tuple, sequences))), [0, 1]))
            stage.admit(len(seats) - 1, seats[-1].params, seats[-1].text)
        logits = random_logits(len(seats), vocab=VOCAB, seed=step)
        rows = rows_of(range(len(seats)), is_all=True)
        found = logits.clone()
        stage.apply(found, rows)
        assert torch.equal(found, staged_scores(logits, seats, BadSequences(num_slots=len(seats), device=CPU)))
        tokens = [rng.randrange(3) for _ in seats]
        stage.append(rows, torch.tensor(tokens))
        seats = [seat.with_token(token) for seat, token in zip(seats, tokens, strict=True)]


def test_slot_forgets_the_sequences_of_its_last_request() -> None:
    stage = BadSequences(num_slots=1, device=CPU)
    logits = random_logits(1, vocab=VOCAB)
    first = Seat(SamplingParams(bad_sequences=((1,), (2,), (3, 4, 5))))
    second = Seat(SamplingParams(bad_sequences=((6,),)))
    staged_scores(logits, [first], stage)
    expected = logits.clone()
    expected[0, 6] = -torch.inf
    assert torch.equal(staged_scores(logits, [second], stage), expected)


def test_greedy_and_drawn_tokens_never_complete_a_sequence() -> None:
    logits = random_logits(60, vocab=VOCAB)
    sequences = ((3,), (1, 2), (1, 1))
    for options in ({}, {"do_sample": True, "temperature": 9.0}):
        seats = [Seat(SamplingParams(bad_sequences=sequences, seed=seed, **options), [5], [1]) for seed in range(60)]
        assert not set(sample(logits, seats).tokens_N.tolist()) & {1, 2, 3}
