"""The predicted wait: tokens ahead, divided by the tokens that left per second in which requests waited."""

import pytest
from textmill_router.scheduler.queue_pace import HALF_LIFE_S, LEAST_OBSERVED_S, QueuePace
from textmill_router.scheduler.waiting_queue import QueueBound, QueueFull

from tests.fakes.scheduler_hand import ENDED, Hand


def test_nothing_is_predicted_before_requests_have_waited() -> None:
    pace = QueuePace()
    for second in range(10):  # each request got a slot at once
        pace.note(1000, is_any_left=False, now=float(second))
    assert pace.wait_s(500, 100, now=10.0) is None
    pace.note(0, is_any_left=True, now=10.0)
    assert pace.wait_s(500, 100, now=10.0 + 0.9 * LEAST_OBSERVED_S) is None


def test_the_wait_is_that_of_the_speed_observed() -> None:
    pace = QueuePace()
    pace.note(0, is_any_left=True, now=0.0)
    for second in range(1, 200):
        pace.note(50, is_any_left=True, now=float(second))
    assert pace.wait_s(500, 0, now=199.0) == pytest.approx(10.0)
    for second in range(200, 400):  # twice as fast, and the past fades
        pace.note(100, is_any_left=True, now=float(second))
    assert pace.wait_s(500, 0, now=399.0) == pytest.approx(5.0, rel=0.01)


def test_an_observation_of_the_half_life_counts_half() -> None:
    pace = QueuePace()
    pace.note(0, is_any_left=True, now=0.0)
    pace.note(800, is_any_left=True, now=8.0)  # 100 tokens a second, for 8 s
    pace.note(200, is_any_left=False, now=8.0 + HALF_LIFE_S)  # then 10 a second, for 20 s
    assert pace.wait_s(100, 0, now=1000.0) == pytest.approx(100 * (4 + 20) / (400 + 200))


def test_time_in_which_nothing_leaves_makes_the_wait_longer() -> None:
    pace = QueuePace()
    pace.note(0, is_any_left=True, now=0.0)
    pace.note(0, is_any_left=True, now=3.0)
    # The best guess is that the next request leaves now: its 30 tokens took 6 s.
    assert pace.wait_s(30, 30, now=6.0) == pytest.approx(6.0)
    assert pace.wait_s(300, 30, now=6.0) == pytest.approx(60.0)


def test_time_without_waiting_requests_is_not_observed() -> None:
    pace = QueuePace()
    pace.note(0, is_any_left=True, now=0.0)
    pace.note(100, is_any_left=False, now=1.0)
    pace.note(0, is_any_left=True, now=500.0)
    pace.note(100, is_any_left=False, now=501.0)
    assert pace.wait_s(100, 0, now=600.0) == pytest.approx(1.0, rel=1e-6)


def test_a_call_is_refused_by_the_wait_before_it_and_never_where_nobody_waits() -> None:
    hand = Hand(num_slots=1, max_waiting_s=2.0)
    scheduler = hand.scheduler
    first = hand.admit([1, 2, 3])
    hand.submit([4] * 10)
    hand.submit([5] * 20)
    scheduler.on_tick(10.0)
    scheduler.check_room(1, 10.1)  # nothing is known yet
    hand.step([(first.slot, 9, ENDED)])
    scheduler.on_tick(11.0)
    assert scheduler.stats().num_waiting_tokens == 20
    wait_s = scheduler.predicted_wait_s(15.0)
    assert wait_s is not None
    with pytest.raises(QueueFull) as refused:
        scheduler.check_room(1, 15.0)
    assert (refused.value.bound, refused.value.found, refused.value.limit) == (QueueBound.SECONDS, wait_s, 2.0)
    scheduler.on_cancel(3)
    assert scheduler.predicted_wait_s(15.0) == 0.0
    scheduler.check_room(1, 15.0)
