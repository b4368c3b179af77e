"""Permits are counted, given back, and refused while the server leaves."""

import asyncio

import pytest
from textmill_router.errors import Overloaded, ShuttingDown
from textmill_router.serving.admission import Admission


def test_one_permit_per_sequence() -> None:
    admission = Admission(3)
    with admission.permits(2), admission.permits(1):
        assert admission.held == 3
        with pytest.raises(Overloaded), admission.permits(1):
            pass
    assert admission.held == 0


def test_permit_comes_back_after_an_error() -> None:
    admission = Admission(1)
    with pytest.raises(RuntimeError), admission.permits(1):
        raise RuntimeError
    assert admission.held == 0


def test_more_sequences_than_permits_never_enter() -> None:
    with pytest.raises(Overloaded, match="--max-concurrent-requests"), Admission(1).permits(2):
        pass


def test_closed_admission_takes_nothing_and_waits_for_what_runs() -> None:
    async def scenario() -> None:
        admission = Admission(2)
        with admission.permits(1):
            admission.close()
            with pytest.raises(ShuttingDown), admission.permits(1):
                pass
            waiter = asyncio.ensure_future(admission.wait_idle())
            await asyncio.sleep(0)
            assert not waiter.done()
        await asyncio.wait_for(waiter, 1)

    asyncio.run(scenario())


def test_retry_after_follows_the_speed_at_which_requests_leave() -> None:
    now = [0.0]
    admission = Admission(8, clock=lambda: now[0])
    for _ in range(100):  # one leaves every 4 s
        with admission.permits(1):
            now[0] += 4.0
    with admission.permits(8):
        error = admission.overloaded("full")
    assert error.retry_after_s == 16  # half of 8 leave in 4 x 4 s
    assert Admission(8).overloaded("full").retry_after_s == 1


def test_time_in_which_nothing_ran_says_nothing_of_the_speed() -> None:
    now = [0.0]
    admission = Admission(8, clock=lambda: now[0])
    for _ in range(50):
        now[0] += 100.0  # idle
        with admission.permits(1):
            now[0] += 2.0
    with admission.permits(8):
        assert admission.overloaded("full").retry_after_s == 8  # half of 8 leave in 4 x 2 s


def test_before_the_first_release_and_in_a_stall_the_time_waited_is_the_guess() -> None:
    now = [0.0]
    admission = Admission(4, clock=lambda: now[0])
    with admission.permits(4):
        now[0] += 7.0
        assert admission.overloaded("full").retry_after_s == 7
        now[0] += 1000.0
        assert admission.overloaded("full").retry_after_s == 60


def test_leaving_server_names_the_time_in_which_all_have_left() -> None:
    now = [0.0]
    admission = Admission(8, clock=lambda: now[0])
    for _ in range(100):
        with admission.permits(1):
            now[0] += 3.0
    with admission.permits(5):
        admission.close()
        with pytest.raises(ShuttingDown) as refused:
            admission.check_open()
    assert refused.value.retry_after_s == 15
