"""How many restarts a window has, and how long each waits."""

from textmill_launcher.restart_budget import RestartBudget


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_first_restart_comes_at_once_and_each_further_one_waits_twice_as_long() -> None:
    budget = RestartBudget(9, 600.0, Clock())
    assert [budget.take() for _ in range(8)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_window_has_no_more_restarts_than_allowed() -> None:
    clock = Clock()
    budget = RestartBudget(2, 60.0, clock)
    assert budget.take() is not None
    clock.now_s += 40.0
    assert budget.take() is not None
    assert budget.take() is None
    assert budget.num_used == 2
    clock.now_s += 20.0  # the first restart has left the window
    assert budget.num_used == 1
    assert budget.take() == 1.0
    assert budget.take() is None


def test_restart_after_a_quiet_window_comes_at_once_again() -> None:
    clock = Clock()
    budget = RestartBudget(3, 60.0, clock)
    budget.take()
    budget.take()
    clock.now_s += 60.0
    assert budget.take() == 0.0


def test_no_restart_is_allowed_when_the_number_is_zero() -> None:
    assert RestartBudget(0, 600.0, Clock()).take() is None
