"""What fits, and in which order a wish is reduced. One token takes one byte, and 64 slots nothing."""

import pytest
from textmill_launcher.plan.estimate import RankNeeds
from textmill_launcher.plan.fit import Fit, Wish, fit

WEIGHTS = 10_000
STEP_PER_TOKEN = 100


def needs_of(wish: Wish) -> RankNeeds:
    return RankNeeds(WEIGHTS, 1, 0, wish.max_step_tokens * STEP_PER_TOKEN, is_step_rough=False)


def fitted(kv_bytes: int, *, context: int, requests: int, step: int = 1024, positions: int = 0) -> Fit:
    """Fit with so many bytes left for keys and values when the step is whole."""
    wish = Wish(context_tokens=context, num_requests=requests, max_step_tokens=step, num_slots=64)
    budget = WEIGHTS + step * STEP_PER_TOKEN + kv_bytes + 16  # of the scratch block
    return fit(wish, needs_of, budget_bytes=budget, max_model_tokens=positions)


def test_wish_that_fits_is_left_alone() -> None:
    found = fitted(32_768, context=4096, requests=8)
    assert (found.fits, found.reductions) == (True, ())
    assert (found.kv_tokens, found.longest_context, found.num_at_once) == (32_768, 32_768, 8)


def test_context_is_reduced_first() -> None:
    found = fitted(24_576, context=4096, requests=8)
    assert found.fits
    assert found.reductions == ("the context (--max-total-tokens) from 4096 to 3072",)
    assert found.num_at_once == 8


def test_then_the_requests_at_once_down_to_one() -> None:
    found = fitted(6_144, context=4096, requests=8)
    assert found.reductions == (
        "the context (--max-total-tokens) from 4096 to 2048",
        "the requests at once (--max-concurrent-requests) from 8 to 3",
    )


def test_then_the_step_and_what_it_frees_is_used() -> None:
    found = fitted(1_024, context=4096, requests=2)
    assert found.fits
    assert found.reductions == (
        "the context (--max-total-tokens) from 4096 to 2048",
        "the tokens of a step (--max-step-tokens) from 1024 to 512",
    )
    assert found.num_at_once >= 2


def test_step_stays_where_bytes_are_given_for_keys_and_values() -> None:
    """A smaller step would free memory, and none of that memory would go to keys and values."""
    wish = Wish(context_tokens=4096, num_requests=2, max_step_tokens=1024, num_slots=64)
    found = fit(wish, needs_of, budget_bytes=10**9, max_model_tokens=0, kv_cache_bytes=1_024 + 16)
    assert found.wish.max_step_tokens == 1024
    assert found.reductions == (
        "the context (--max-total-tokens) from 4096 to 1024",
        "the requests at once (--max-concurrent-requests) from 2 to 1",
    )


def test_at_last_the_context_again() -> None:
    found = fitted(500, context=4096, requests=1, step=128)
    assert found.fits
    assert found.reductions == ("the context (--max-total-tokens) from 4096 to 496",)


def test_what_never_fits_is_shown_whole() -> None:
    found = fitted(-50_000, context=4096, requests=4, step=128)
    assert (found.fits, found.reductions, found.wish.context_tokens) == (False, (), 4096)
    assert (found.kv_tokens, found.num_at_once) == (0, 0)


def test_positions_bound_the_context() -> None:
    found = fitted(100_000, context=4096, requests=1, positions=1024)
    assert found.reductions == ("the context (--max-total-tokens) from 4096 to 1024",)


@pytest.mark.parametrize(("slots", "at_once"), [(64, 64), (4, 4)])
def test_slots_bound_the_requests_at_once(slots: int, at_once: int) -> None:
    wish = Wish(context_tokens=16, num_requests=1, max_step_tokens=128, num_slots=slots)
    assert fit(wish, needs_of, budget_bytes=1_000_000, max_model_tokens=0).num_at_once == at_once


def test_requests_beyond_the_slots_take_nothing_of_the_context() -> None:
    found = fitted(1_000_000, context=4096, requests=100)
    assert found.fits
    assert found.reductions == ("the requests at once (--max-concurrent-requests) from 100 to 64",)


def test_slots_that_a_smaller_step_takes_away_are_told() -> None:
    wish = Wish(context_tokens=16, num_requests=1, max_step_tokens=1024, num_slots=1024)
    found = fit(wish, needs_of, budget_bytes=WEIGHTS + 512 * STEP_PER_TOKEN + 1_000, max_model_tokens=0)
    assert found.reductions == (
        "the tokens of a step (--max-step-tokens) from 1024 to 512",
        "the slots (--num-slots) from 1024 to 512",
    )


@pytest.mark.parametrize(
    ("kv_cache_bytes", "asked", "adapter_bytes", "kv_bytes"),
    [
        (None, 0, 0, 100_000),
        (None, 30_000, 30_000, 70_000),
        (None, None, 5_000, 95_000),  # a twentieth, as the shard takes
        (40_000, 30_000, 30_000, 40_000),
        (40_000, None, 2_000, 40_000),
    ],
)
def test_adapters_get_their_bytes_before_keys_and_values(
    kv_cache_bytes: int | None, asked: int | None, adapter_bytes: int, kv_bytes: int
) -> None:
    wish = Wish(context_tokens=16, num_requests=1, max_step_tokens=128, num_slots=64)
    budget = WEIGHTS + 128 * STEP_PER_TOKEN + 100_000
    found = fit(
        wish,
        needs_of,
        budget_bytes=budget,
        max_model_tokens=0,
        kv_cache_bytes=kv_cache_bytes,
        adapter_bytes=asked,
    )
    assert (found.adapter_bytes, found.kv_bytes) == (adapter_bytes, kv_bytes)
