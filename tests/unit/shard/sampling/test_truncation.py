"""What the filters keep, against transformers' warpers one after the other."""

import pytest
import torch
from textmill_shard.sampling.truncation import Filters, Kept, Limits, RowTotals, truncate
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.fakes.sampling_hand import CPU, rows_of

VOCAB = 700
NUM_ROWS = 12
SINGLE = [
    SamplingParams(do_sample=True, temperature=0.7, top_k=1),
    SamplingParams(do_sample=True, temperature=1.3, top_k=20),
    SamplingParams(do_sample=True, top_k=5000),
    SamplingParams(do_sample=True, temperature=0.6, top_p=0.9),
    SamplingParams(do_sample=True, top_p=0.001),
    SamplingParams(do_sample=True, temperature=2.0, top_p=0.95),
    SamplingParams(do_sample=True, min_p=0.1),
    SamplingParams(do_sample=True, temperature=1.5, min_p=0.001),
    SamplingParams(do_sample=True, typical_p=0.2),
    SamplingParams(do_sample=True, temperature=0.5, typical_p=0.9),
    SamplingParams(do_sample=True, temperature=1.7, typical_p=0.97),
]
TOGETHER = [
    SamplingParams(do_sample=True, temperature=1.2, top_k=40, top_p=0.8),
    SamplingParams(do_sample=True, temperature=1.2, min_p=0.02, top_k=30, top_p=0.9, typical_p=0.7),
    SamplingParams(do_sample=True, temperature=0.8, top_p=0.9, typical_p=0.5),
    SamplingParams(do_sample=True, temperature=0.8, min_p=0.05, typical_p=0.6),
    SamplingParams(do_sample=True, temperature=2.0, min_p=0.001, top_p=0.99),
]


def random_logits() -> torch.Tensor:
    """Rows from peaked to flat, [NUM_ROWS, VOCAB]."""
    widths = torch.linspace(0.2, 5.0, NUM_ROWS).unsqueeze(-1)
    return torch.randn(NUM_ROWS, VOCAB, generator=torch.Generator().manual_seed(9)) * widths


def build_limits(rows: list[SamplingParams]) -> Limits:
    filters = Filters(num_slots=len(rows), device=CPU)
    for slot, params in enumerate(rows):
        filters.admit(slot, params)
    return filters.limits(rows_of(range(len(rows)), is_all=True))


def kept_by_transformers(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    warpers = [TemperatureLogitsWarper(params.temperature)]
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.typical_p < 1:
        warpers.append(TypicalLogitsWarper(params.typical_p))
    scores = logits.double()
    for warper in warpers:
        scores = warper(None, scores)
    return torch.isfinite(scores)


def kept_by_us(logits: torch.Tensor, rows: list[SamplingParams], num_columns: int) -> tuple[torch.Tensor, Kept]:
    """The kept ids as a mask over the vocabulary, and what `truncate` said."""
    temperatures = torch.tensor([[params.temperature] for params in rows], dtype=torch.float64)
    scaled = logits.double() / temperatures
    log_probs = scaled.log_softmax(-1)
    best, ids = scaled.sort(dim=-1, descending=True)
    highest = best[:, :1]
    totals = RowTotals(
        log_mass_R=(scaled - highest).logsumexp(-1),
        entropy_R=-(log_probs.exp() * log_probs).sum(-1),
    )
    limits = build_limits(rows)
    scores = (best - highest)[:, :num_columns]
    kept = truncate(scores, limits, totals, is_whole=num_columns == logits.shape[-1])
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids[:, :num_columns], kept.keep_RC)
    return mask, kept


@pytest.mark.parametrize("params", SINGLE + TOGETHER, ids=str)
def test_whole_rows_keep_what_transformers_keeps(params):
    logits = random_logits()
    mask, kept = kept_by_us(logits, [params] * NUM_ROWS, VOCAB)
    assert bool(kept.fits_R.all())
    assert torch.equal(mask, kept_by_transformers(logits, params))


@pytest.mark.parametrize("params", SINGLE + TOGETHER, ids=str)
def test_candidates_that_claim_to_fit_keep_what_transformers_keeps(params):
    logits = random_logits()
    expected = kept_by_transformers(logits, params)
    for num_columns in (8, 32, 128, 512):
        mask, kept = kept_by_us(logits, [params] * NUM_ROWS, num_columns)
        assert torch.equal(mask[kept.fits_R], expected[kept.fits_R])


def test_filters_of_one_row_do_not_touch_another():
    logits = random_logits()
    rows = (SINGLE + TOGETHER)[:NUM_ROWS]
    mask, _ = kept_by_us(logits, rows, VOCAB)
    for row, params in enumerate(rows):
        assert torch.equal(mask[row], kept_by_transformers(logits[row : row + 1], params)[0]), params


@pytest.mark.parametrize(
    ("params", "num_fitting"),
    [
        (SamplingParams(do_sample=True, top_k=20), NUM_ROWS),
        (SamplingParams(do_sample=True, top_k=64), 0),  # the 64th is the last: a tie could lie beyond
        (SamplingParams(do_sample=True), 0),
    ],
    ids=str,
)
def test_a_set_fits_only_when_its_end_is_seen(params, num_fitting):
    _, kept = kept_by_us(random_logits(), [params] * NUM_ROWS, 64)
    assert int(kept.fits_R.sum()) == num_fitting


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(do_sample=True, top_p=0.9),
        SamplingParams(do_sample=True, min_p=0.02),
        SamplingParams(do_sample=True, typical_p=0.8),
        SamplingParams(do_sample=True, top_p=0.9, typical_p=0.8),
        SamplingParams(do_sample=True, min_p=0.02, top_p=0.9),
    ],
    ids=str,
)
def test_peaked_rows_fit_and_flat_rows_do_not(params):
    _, kept = kept_by_us(random_logits(), [params] * NUM_ROWS, 128)
    assert not bool(kept.fits_R[0])
    assert bool(kept.fits_R[-1])


def test_ties_with_the_last_of_top_k_stay():
    logits = torch.tensor([[3.0, 1.0, 1.0, 2.0, 1.0, 0.0]])
    mask, _ = kept_by_us(logits, [SamplingParams(do_sample=True, top_k=3)], 6)
    assert mask.tolist() == [[True, True, True, True, True, False]]


def test_masked_tokens_are_never_kept_by_a_filter():
    logits = random_logits()
    logits[:, ::2] = -torch.inf
    for params in (SINGLE[3], SINGLE[6], SINGLE[9], TOGETHER[0]):
        temperatures = logits / params.temperature
        best, ids = temperatures.sort(dim=-1, descending=True)
        weights = (best - best[:, :1]).double()
        probs = weights.softmax(-1)
        totals = RowTotals(weights.logsumexp(-1), -(probs * probs.log()).nansum(-1))
        kept = truncate(weights, build_limits([params] * NUM_ROWS), totals, is_whole=True)
        mask = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, kept.keep_RC)
        assert torch.equal(mask & torch.isfinite(logits), kept_by_transformers(logits, params))
