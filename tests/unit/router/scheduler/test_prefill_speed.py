"""The least time of a prompt's tokens, which follows from the best of recent steps."""

import pytest
from textmill_router.scheduler.prefill_speed import LEAST_TOKENS, PrefillSpeed


def test_the_best_step_counts_and_fades_with_slower_ones() -> None:
    speed = PrefillSpeed()
    assert speed.least_s(1000) == 0.0  # nothing is known, so nobody is too late
    speed.note(100, 1.0)
    speed.note(100, 0.5)
    assert speed.least_s(1000) == pytest.approx(5.0)
    for _ in range(10):
        speed.note(100, 1.0)
    assert speed.least_s(1000) == pytest.approx(5.0 * 1.01**10)
    for _ in range(100):
        speed.note(100, 1.0)
    assert speed.least_s(1000) == pytest.approx(10.0)


def test_steps_with_few_prompt_tokens_say_nothing() -> None:
    speed = PrefillSpeed()
    speed.note(LEAST_TOKENS - 1, 10.0)
    speed.note(100, 0.0)  # a shard that tells no time
    assert speed.least_s(1000) == 0.0
