"""Permits are counted, given back, and refused while the server stops."""

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.errors import Overloaded, Recovering, ShuttingDown
from textmill_router.http.api_keys import Caller
from textmill_router.serving.permits import Permits


def test_one_permit_per_sequence() -> None:
    permits = Permits(3)
    with permits.hold(2), permits.hold(1):
        assert permits.held == 3
        with pytest.raises(Overloaded), permits.hold(1):
            pass
    assert permits.held == 0


def test_refusal_while_the_shards_are_away_tells_when_they_should_be_back() -> None:
    back_in_s: float | None = None
    permits = Permits(1, back_in_s=lambda: back_in_s)
    with permits.hold(1):
        with pytest.raises(Overloaded), permits.hold(1):
            pass
        back_in_s = 6.2
        with pytest.raises(Recovering, match="the shards start again; try again in 7 s") as caught, permits.hold(1):
            pass
        assert caught.value.retry_after_s == 7


def test_permit_comes_back_after_an_error() -> None:
    permits = Permits(1)
    with pytest.raises(RuntimeError), permits.hold(1):
        raise RuntimeError
    assert permits.held == 0


def test_more_sequences_than_permits_never_enter() -> None:
    permits = Permits(1)
    for refused in (permits.check_room, lambda count: permits.hold(count).__enter__()):
        with pytest.raises(Overloaded, match="--max-concurrent-requests"):
            refused(2)
    assert permits.held == 0
    permits.check_room(1)


def test_closed_admission_takes_nothing_and_waits_for_what_runs() -> None:
    async def scenario() -> None:
        permits = Permits(2)
        with permits.hold(1):
            permits.close()
            with pytest.raises(ShuttingDown), permits.hold(1):
                pass
            waiter = asyncio.ensure_future(permits.wait_idle())
            await asyncio.sleep(0)
            assert not waiter.done()
        await asyncio.wait_for(waiter, 1)

    asyncio.run(scenario())


def test_retry_after_follows_the_speed_at_which_requests_leave() -> None:
    now = [0.0]
    permits = Permits(8, clock=lambda: now[0])
    for _ in range(100):  # one leaves every 4 s
        with permits.hold(1):
            now[0] += 4.0
    with permits.hold(8):
        error = permits.overloaded("full")
    assert error.retry_after_s == 16  # half of 8 leave in 4 x 4 s
    assert Permits(8).overloaded("full").retry_after_s == 1


def test_time_in_which_nothing_ran_says_nothing_of_the_speed() -> None:
    now = [0.0]
    permits = Permits(8, clock=lambda: now[0])
    for _ in range(50):
        now[0] += 100.0  # idle
        with permits.hold(1):
            now[0] += 2.0
    with permits.hold(8):
        assert permits.overloaded("full").retry_after_s == 8  # half of 8 leave in 4 x 2 s


def test_before_the_first_release_and_in_a_stall_the_time_waited_is_the_guess() -> None:
    now = [0.0]
    permits = Permits(4, clock=lambda: now[0])
    with permits.hold(4):
        now[0] += 7.0
        assert permits.overloaded("full").retry_after_s == 7
        now[0] += 1000.0
        assert permits.overloaded("full").retry_after_s == 60


def test_leaving_server_names_the_time_in_which_all_have_left() -> None:
    now = [0.0]
    permits = Permits(8, clock=lambda: now[0])
    for _ in range(100):
        with permits.hold(1):
            now[0] += 3.0
    with permits.hold(5):
        permits.close()
        with pytest.raises(ShuttingDown) as refused:
            permits.check_open()
    assert refused.value.retry_after_s == 15


def test_the_last_quarter_is_kept_for_callers_below_their_share() -> None:
    permits = Permits(8)
    greedy, modest = Caller("greedy", share=0.25), Caller("modest", share=0.75)
    with permits.hold(6, greedy):
        with pytest.raises(Overloaded, match="6 of 8 sequences are in work, 6 of them for this API key"):
            permits.check_room(1, greedy)
        with permits.hold(2, modest), pytest.raises(Overloaded, match="8 of 8"):
            permits.check_room(1, modest)
        permits.check_room(2, modest)
    for caller in (greedy, modest):
        assert permits.most_for(caller) == 6
        permits.check_room(6, caller)
        with pytest.raises(Overloaded, match="0 of 8 sequences are in work"):
            permits.check_room(7, caller)
    most_of_all = Caller("most of all", share=0.9)
    assert permits.most_for(most_of_all) == 7
    permits.check_room(7, most_of_all)


def test_one_caller_may_have_all_permits() -> None:
    permits, alone = Permits(8), Caller("alone", share=1.0)
    assert permits.most_for(alone) == 8
    with permits.hold(8, alone):
        pass


ERRORS = (None, ValueError, asyncio.CancelledError, TimeoutError)
# The bytes of a body that comes; or the place of a call that ends, and the error that ends the call.
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(1, 60), st.none()),
        st.tuples(st.just("end"), st.integers(0, 20), st.sampled_from(ERRORS)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(calls=CALLS)
def test_bytes_of_calls_that_wait_never_pass_the_bound_and_all_come_back(
    calls: list[tuple[str, int, type[BaseException] | None]],
) -> None:
    permits = Permits(100, unit="bytes of files", flag="--max-queued-file-bytes")
    waiting: list[tuple[int, ExitStack]] = []

    def end(place: int, error: type[BaseException] | None) -> None:
        _, call = waiting.pop(place)
        raised = None if error is None else error()
        call.__exit__(error, raised, None)

    for what, number, error in calls:
        held = sum(size for size, _ in waiting)
        if what == "end":
            if number < len(waiting):
                end(number, error)
        elif held + number <= 100:
            call = ExitStack()
            call.enter_context(permits.hold(number))
            waiting.append((number, call))
        else:
            bound = rf"{held} of 100 bytes of files .*\(--max-queued-file-bytes\)"
            with pytest.raises(Overloaded, match=bound) as refusal:
                permits.hold(number).__enter__()
            assert refusal.value.retry_after_s >= 1
        assert permits.held == sum(size for size, _ in waiting)
    while waiting:
        end(0, None)
    assert permits.held == 0
    with permits.hold(100):
        assert permits.is_full
