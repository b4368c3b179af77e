"""The drawn tokens follow the right distribution, and the other rows of a batch cannot change the draws of a row."""

import math

import pytest
import torch
from textmill_shard.sampling import noise
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.fakes.sampling_hand import Seat, sample, seated_sampler, step_rows

VOCAB = 300


def random_logits(num_rows: int, *, vocab: int = VOCAB, width: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * width


def slot(params: SamplingParams, *, num_output: int = 0) -> Seat:
    return Seat(params, [1, 2, 3], list(range(num_output)))


def draw_many(logits_V: torch.Tensor, params: SamplingParams, num_draws: int, *, num_candidates: int) -> torch.Tensor:
    """Return [num_draws] tokens of one request at as many positions.

    The tokens come from 200 rows, each of which has a stretch of positions of its own.
    """
    num_steps = num_draws // 200
    sampler = seated_sampler(
        [slot(params, num_output=row * num_steps) for row in range(200)], num_candidates=num_candidates
    )
    rows = step_rows(sampler, range(200))
    tokens = []
    for _ in range(num_steps):
        tokens.append(sampler.sample(logits_V.expand(200, -1), rows).tokens_N)
        sampler.append(rows, tokens[-1])
    return torch.cat(tokens)


def assert_follows(tokens: torch.Tensor, probs_V: torch.Tensor, *, num_bins: int = 40) -> None:
    """Fail unless the tokens look like independent draws from `probs_V`, by a chi-square test over bins of ids.

    The bins have about equal mass, with neighbouring ranks in one bin. A sampler that is right fails for one of 9,300
    sequences of seeds. The seeds of each test are fixed, so that a test that passed fails only after a change of the
    draws. An id of probability 0 fails at once.
    """
    assert bool((probs_V[tokens] > 0).all())
    order = probs_V.argsort(descending=True)
    before = probs_V[order].cumsum(0) - probs_V[order]
    bin_of_token = torch.empty_like(order)
    bin_of_token[order] = (before * num_bins).long().clamp(max=num_bins - 1)
    expected = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bin_of_token, probs_V.double())
    counts = torch.bincount(bin_of_token[tokens], minlength=num_bins).double()
    used = expected > 0
    expected = expected[used] * len(tokens)
    assert float(expected.min()) >= 5
    statistic = float(((counts[used] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal. Chance exceeds 3.7
    # standard deviations in one of 9,300 cases.
    spread = 2 / (9 * freedom)
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    assert deviation < 3.7, (statistic, freedom)


@pytest.mark.parametrize(("num_candidates", "num_draws"), [(32, 4000), (1024, 20_000)])
@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        (SamplingParams(do_sample=True, temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (SamplingParams(do_sample=True, top_k=25), [TopKLogitsWarper(25)]),
        (SamplingParams(do_sample=True, top_p=0.8), [TopPLogitsWarper(0.8)]),
        (
            SamplingParams(do_sample=True, temperature=0.6, typical_p=0.7),
            [TemperatureLogitsWarper(0.6), TypicalLogitsWarper(0.7)],
        ),
        (
            SamplingParams(do_sample=True, temperature=1.4, top_k=200, top_p=0.95, typical_p=0.9),
            [TemperatureLogitsWarper(1.4), TopKLogitsWarper(200), TopPLogitsWarper(0.95), TypicalLogitsWarper(0.9)],
        ),
    ],
    ids=["temperature", "top-k", "top-p", "typical-p", "all"],
)
def test_draws_follow_the_distribution_that_transformers_makes(params, warpers, num_candidates, num_draws):
    logits_V = random_logits(1, width=1.5)[0]
    tokens = draw_many(logits_V, params, num_draws, num_candidates=num_candidates)
    scores = logits_V.unsqueeze(0)
    for warper in warpers:
        scores = warper(None, scores)
    assert_follows(tokens, scores.softmax(-1)[0])


def test_draws_from_a_flat_row_reach_the_tail_by_its_mass():
    """Of the mass of 2,048 ids at temperature 2, more than 80 % lie outside of the 64 candidates.

    20,000 draws find a tail whose weight is 14 % too small in half of the cases, and 16 % too small in four of five. A
    false alarm has the probability that `assert_follows` states.
    """
    logits_V = random_logits(1, vocab=2048, width=1.0)[0]
    probs_V = (logits_V / 2).softmax(-1)
    params = SamplingParams(do_sample=True, temperature=2.0, seed=4)
    tokens = draw_many(logits_V, params, 20_000, num_candidates=64)
    assert float(probs_V.topk(64).values.sum()) < 0.2
    assert_follows(tokens, probs_V)


def test_draws_from_a_full_vocabulary_follow_softmax():
    logits_V = random_logits(1, vocab=49_152, width=4.0, seed=1)[0]
    probs_V = (logits_V / 2).softmax(-1)
    outside = 1 - float(probs_V.topk(1024).values.sum())
    assert 0.2 < outside < 0.8
    tokens = draw_many(logits_V, SamplingParams(do_sample=True, temperature=2.0, seed=5), 1000, num_candidates=1024)
    assert_follows(tokens, probs_V)


MIXED = [  # requests that ask for each way of sampling, alone and together
    SamplingParams(),
    SamplingParams(do_sample=True, seed=1),
    SamplingParams(do_sample=True, temperature=2.0, seed=2),
    SamplingParams(do_sample=True, temperature=0.5, top_k=10, seed=3),
    SamplingParams(do_sample=True, top_p=0.9, seed=4),
    SamplingParams(do_sample=True, temperature=3.0, top_p=0.99, seed=5),  # wider than the candidates
    SamplingParams(do_sample=True, min_p=0.05, seed=6),
    SamplingParams(do_sample=True, typical_p=0.5, seed=7),
    SamplingParams(do_sample=True, temperature=3.0, typical_p=0.95, seed=8),  # wider than the candidates
    SamplingParams(do_sample=True, top_k=40, top_p=0.9, repetition_penalty=1.3, seed=9),
    SamplingParams(repetition_penalty=1.3, frequency_penalty=0.5),
    SamplingParams(do_sample=True, presence_penalty=1.0, frequency_penalty=0.5, seed=1 << 63),
    SamplingParams(do_sample=True, logit_bias=((5, 4.0), (6, -4.0)), seed=(1 << 64) - 1),
    SamplingParams(do_sample=True, min_new_tokens=50, end_ids=(0, 1), seed=12),
    SamplingParams(do_sample=True, top_k=200, seed=13),
    SamplingParams(do_sample=True, top_k=1, seed=14),
    SamplingParams(do_sample=True, min_p=0.001, top_p=0.99, typical_p=0.9, temperature=2.0, seed=15),
]


def test_a_row_draws_the_same_alone_among_others_and_in_any_order():
    sampler = seated_sampler(
        [slot(params, num_output=number) for number, params in enumerate(MIXED)], num_candidates=64
    )
    generator = torch.Generator().manual_seed(2)
    every = list(range(len(MIXED)))
    for step in range(12):
        logits = random_logits(len(MIXED), width=2.0, seed=step)
        rows = step_rows(sampler, every)
        together = sampler.sample(logits, rows).tokens_N
        alone = [sampler.sample(logits[row : row + 1], step_rows(sampler, [row])).tokens_N[0] for row in every]
        assert together.tolist() == [int(token) for token in alone]
        order = torch.randperm(len(MIXED), generator=generator)
        mixed = sampler.sample(logits[order], step_rows(sampler, order.tolist())).tokens_N
        assert torch.equal(mixed, together[order])
        sampler.append(rows, together)


def test_a_draw_depends_on_seed_and_position():
    logits = torch.zeros(64, VOCAB)
    positions = [slot(SamplingParams(do_sample=True, seed=1), num_output=number) for number in range(64)]
    seeds = [slot(SamplingParams(do_sample=True, seed=number)) for number in range(64)]
    for states in (positions, seeds):
        assert len(set(sample(logits, states).tokens_N.tolist())) > 40


def test_greedy_takes_the_first_of_the_best():
    logits = torch.tensor([[0.0, 5.0, 1.0, 5.0], [2.0, 2.0, 2.0, 2.0], [-9.0, -8.0, -7.0, -1.0]])
    assert sample(logits, [slot(SamplingParams())] * 3).tokens_N.tolist() == [1, 0, 3]


def test_greedy_rows_among_drawn_ones_take_the_best_of_the_changed_scores():
    logits = random_logits(3)
    best = int(logits[1].argmax())
    states = [
        slot(SamplingParams(do_sample=True, seed=1)),
        slot(SamplingParams(logit_bias=((best, -100.0),))),
        slot(SamplingParams(do_sample=True, seed=2)),
    ]
    assert int(sample(logits, states).tokens_N[1]) == int(logits[1].topk(2).indices[1])


def test_a_tiny_temperature_is_greedy():
    logits = random_logits(4)
    states = [slot(SamplingParams(do_sample=True, temperature=1e-30, seed=seed)) for seed in range(4)]
    assert torch.equal(sample(logits, states, num_candidates=16).tokens_N, logits.argmax(-1))


def test_masked_ends_are_never_drawn():
    logits = torch.zeros(1, 8)
    logits[0, :4] = 20.0
    state = slot(SamplingParams(do_sample=True, min_new_tokens=100, end_ids=(0, 1, 2, 3), seed=3))
    for _ in range(100):
        token = int(sample(logits, [state], num_candidates=4).tokens_N[0])
        assert token >= 4
        state = state.with_token(token)
    assert int(sample(logits, [state]).tokens_N[0]) < 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num_candidates", [16, 1024])
def test_a_row_that_is_not_finite_is_reported_and_others_are_undisturbed(bad, num_candidates):
    logits = random_logits(len(MIXED))
    states = [slot(params) for params in MIXED]
    before = sample(logits, states, num_candidates=num_candidates)
    assert not bool(before.not_finite_N.any())
    broken = [0, 2, 5, 9]
    spoiled = logits.clone()
    spoiled[broken, 7] = bad
    after = sample(spoiled, states, num_candidates=num_candidates)
    assert after.not_finite_N.nonzero().flatten().tolist() == broken
    assert torch.equal(after.tokens_N[~after.not_finite_N], before.tokens_N[~after.not_finite_N])
    assert after.tokens_N[broken].tolist() == [0] * len(broken)


def test_logprobs_are_those_of_the_models_own_logits():
    logits = random_logits(3)
    before = logits.clone()
    changed = SamplingParams(
        do_sample=True,
        temperature=0.3,
        top_k=3,
        repetition_penalty=2.0,
        logit_bias=((4, 9.0),),
        wants_logprobs=True,
        top_n_tokens=2,
    )
    states = [slot(SamplingParams()), slot(changed), slot(SamplingParams(wants_logprobs=True))]
    found = sample(logits, states)
    assert torch.equal(logits, before)
    expected = before.log_softmax(-1).gather(-1, found.tokens_N.unsqueeze(-1)).squeeze(-1)
    assert found.logprobs_N is not None
    torch.testing.assert_close(found.logprobs_N[1:], expected[1:])
    assert bool(found.logprobs_N[0].isnan())
    assert [entry is None for entry in found.top] == [True, False, True]
    assert found.top[1] is not None
    assert found.top[1].ids.tolist() == before[1].topk(2).indices.tolist()


def test_nobody_asks_for_logprobs():
    found = sample(random_logits(2), [slot(SamplingParams())] * 2)
    assert (found.logprobs_N, found.top) == (None, ())


@pytest.mark.parametrize("num_candidates", [4, 1024])
@pytest.mark.parametrize(
    "filters", [{}, {"top_p": 0.9}, {"typical_p": 0.9}, {"top_k": 3}, {"min_p": 0.05}], ids=lambda f: "-".join(f) or "-"
)
def test_draws_under_a_grammar_follow_the_masked_distribution(num_candidates: int, filters: dict[str, float]) -> None:
    logits_V = random_logits(1, seed=4)[0]
    allowed_V = torch.zeros(VOCAB, dtype=torch.bool)
    allowed_V[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))[:9]] = True
    masked_V = logits_V.masked_fill(~allowed_V, -torch.inf)
    params = SamplingParams(do_sample=True, seed=3, has_grammar=True, **filters)  # type: ignore[arg-type]
    seats = [Seat(params, output=list(range(number)), allowed_V=allowed_V.numpy()) for number in range(400)]
    tokens = sample(logits_V.expand(400, -1), seats, num_candidates=num_candidates).tokens_N
    warpers = {"top_p": TopPLogitsWarper, "typical_p": TypicalLogitsWarper, "top_k": TopKLogitsWarper}
    scores = masked_V[None]
    for name, value in filters.items():
        scores = warpers[name](value)(torch.zeros(1, 1), scores) if name in warpers else min_p(scores, value)
    assert_follows(tokens, scores.softmax(-1)[0], num_bins=4)


def min_p(scores: torch.Tensor, least: float) -> torch.Tensor:
    probs = scores.softmax(-1)
    return scores.masked_fill(probs < least * probs.max(), -torch.inf)


def test_rounding_lets_nothing_through_that_a_grammar_forbids() -> None:
    # The noise of the tail is 17.8 with this seed, a value that one of 60 million draws has. With this noise, a tail
    # with a mass of 3e-8 would win.
    params = SamplingParams(do_sample=True, temperature=0.9, seed=13_328_519, has_grammar=True)
    logits_NV = random_logits(200, width=1.0)
    words_12 = noise.seed_words([params.seed], torch.device("cpu"))
    noise_V = noise.gumbel(words_12, torch.zeros(1, dtype=torch.int64), torch.arange(VOCAB)[None])[0]
    allowed_V = torch.zeros(VOCAB, dtype=torch.bool)
    allowed_V[noise_V.argsort()[:7]] = True  # tokens with little noise of their own
    seats = [Seat(params, allowed_V=allowed_V.numpy()) for _ in range(len(logits_NV))]
    tokens_N = sample(logits_NV, seats, num_candidates=16).tokens_N
    assert bool(allowed_V[tokens_N].all())
