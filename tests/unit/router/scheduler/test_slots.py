import pytest
from textmill_router.request import GenerationRequest, RequestId, token_array
from textmill_router.scheduler.request_state import RequestState, RequestStatus
from textmill_router.scheduler.slots import Seats


def seat(table: Seats, request_id: int) -> RequestState:
    state = RequestState(
        GenerationRequest(RequestId(request_id), prompt_ids=token_array([1]), max_new_tokens=4, arrival_s=0.0)
    )
    table.seat(state)
    state.status = RequestStatus.RUNNING
    return state


def test_seats_are_given_until_none_is_left():
    table = Seats(2)
    states = [seat(table, 1), seat(table, 2)]
    assert {state.slot for state in states} == {0, 1}
    assert not table.can_seat()
    with pytest.raises(AssertionError):
        seat(table, 3)


def test_rule_06_a_drop_frees_its_seat_only_when_its_plan_was_applied():
    table = Seats(3)
    first, second, third = (seat(table, request_id) for request_id in (1, 2, 3))
    table.drop_sent(first, 4)
    table.drop_sent(second, 5)
    assert table.acknowledge(3) == []
    assert table.acknowledge(4) == [first]
    assert table.num_free == 1
    assert table.acknowledge(9) == [second]
    assert list(table.occupants()) == [third]


def test_rule_05_a_drop_of_one_that_ended_before_frees_nothing_twice():
    table = Seats(1)
    first = seat(table, 1)
    table.drop_sent(first, 1)
    table.free(first)
    second = seat(table, 2)
    assert table.acknowledge(1) == []
    assert list(table.occupants()) == [second]


def test_running_leaves_out_who_is_leaving():
    table = Seats(2)
    first, second = seat(table, 1), seat(table, 2)
    first.status = RequestStatus.PREEMPTED
    assert table.running() == [second]
    assert table.is_any_in_prefill() is False
    first.watch_at = 0
    assert table.is_any_in_prefill() is True
