"""How long shards are away, and when they should be back."""

from textmill_router.engine.recovery import FIRST_GUESS_S, Recovery
from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram


class Away:
    """A recovery with a clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.durations = Histogram(DURATION_BOUNDS_S)
        self.recovery = Recovery(lambda: self.now_s, self.durations)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


def test_first_start_is_the_guess_for_the_first_recovery_and_is_no_recovery_itself() -> None:
    away = Away()
    away.wait(40.0)
    away.recovery.end()
    assert away.durations.buckets()[-1][1] == 0
    assert away.recovery.remaining_s == 0.0
    away.recovery.lose()
    away.wait(15.0)
    assert (away.recovery.away_s, away.recovery.remaining_s) == (15.0, 25.0)


def test_router_that_finds_its_shards_ready_guesses() -> None:
    away = Away()
    away.recovery.end()
    away.recovery.lose()
    assert away.recovery.remaining_s == FIRST_GUESS_S


def test_last_recovery_is_the_guess_for_the_next_one() -> None:
    away = Away()
    away.recovery.end()
    for seconds in (30.0, 3.0):
        away.recovery.lose()
        away.wait(seconds)
        away.recovery.end()
    assert (away.durations.buckets()[-1][1], away.durations.sum) == (2, 33.0)
    away.recovery.lose()
    away.wait(1.0)
    assert away.recovery.remaining_s == 2.0


def test_recovery_that_takes_longer_than_the_last_one_counts_as_half_done() -> None:
    away = Away()
    away.recovery.end()
    away.recovery.lose()
    away.wait(3.0)
    away.recovery.end()
    away.recovery.lose()
    away.wait(8.0)
    assert away.recovery.remaining_s == 8.0
