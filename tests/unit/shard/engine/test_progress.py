"""When a step loop counts as late."""

import math

from textmill_shard.engine.progress import Progress


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_nothing_is_late_before_the_warm_up_step_was_measured() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect()
    clock.now_s += 3600.0
    assert progress.overdue_s() == 0.0
    assert progress.limit_s == math.inf


def test_limit_is_a_second_and_ten_times_the_warm_up_step() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.measure_warm_up(0.3)
    assert progress.limit_s == 4.0
    progress.expect()
    clock.now_s += 4.0
    assert progress.overdue_s() == 0.0
    clock.now_s += 0.5
    assert progress.overdue_s() == 0.5
    progress.expect()
    assert progress.overdue_s() == 0.0


def test_a_step_that_was_seen_counts_three_times() -> None:
    progress = Progress(Clock())
    progress.measure_warm_up(0.3)
    progress.measure_step(0.9)
    assert progress.limit_s == 4.0
    progress.measure_step(2.0)
    assert progress.limit_s == 7.0


def test_allowance_comes_on_top_of_the_limit() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.measure_warm_up(0.0)
    progress.expect(0.5)
    clock.now_s += 2.0
    assert progress.overdue_s() == 0.5


def test_a_rank_that_waits_for_another_one_is_never_late() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.measure_warm_up(0.0)
    progress.expect()
    progress.rest()
    clock.now_s += 3600.0
    assert progress.overdue_s() == 0.0
