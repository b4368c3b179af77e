import pytest
from textmill_router.request import GenerationRequest, RequestId, Standing, token_array
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.waiting_queue import QueueBound, QueueFull, WaitingQueue


def make_state(request_id: int, *, num_tokens: int = 1, priority: int = 0, arrival_s: float = 0.0) -> RequestState:
    return RequestState(
        GenerationRequest(
            request_id=RequestId(request_id),
            prompt_ids=token_array([1] * num_tokens),
            max_new_tokens=1,
            arrival_s=arrival_s,
            standing=Standing(priority=priority),
        )
    )


def ids_of(queue: WaitingQueue) -> list[int]:
    return [state.request_id for state in queue]


def test_order_is_priority_then_arrival_then_id():
    queue = WaitingQueue(max_requests=9, max_tokens=99)
    queue.push(make_state(1, priority=1, arrival_s=0.0))
    queue.push(make_state(3, arrival_s=2.0))
    queue.push(make_state(4, arrival_s=1.0))
    queue.push(make_state(2, arrival_s=2.0))
    assert ids_of(queue) == [4, 2, 3, 1]


def test_rule_06_those_that_ran_before_stand_at_the_head():
    queue = WaitingQueue(max_requests=9, max_tokens=99)
    queue.push(make_state(1, priority=-5))
    back = make_state(7, priority=3, arrival_s=9.0)
    back.order = (0, *back.place_order)
    queue.push(back)
    assert ids_of(queue) == [7, 1]


def test_remove_takes_the_one_that_is_meant():
    queue = WaitingQueue(max_requests=9, max_tokens=99)
    states = [make_state(request_id, num_tokens=request_id) for request_id in (1, 2, 3)]
    for state in states:
        queue.push(state)
    queue.remove(states[1])
    assert ids_of(queue) == [1, 3]
    assert queue.num_tokens == 4


def test_burst_that_finds_free_slots_is_let_in_until_a_plan_has_passed_it_over():
    queue = WaitingQueue(max_requests=2, max_tokens=99)
    for request_id in range(5):
        queue.check_room(1, num_free_slots=3)
        queue.push(make_state(request_id))
    with pytest.raises(QueueFull, match="2 requests wait, at most 2 may"):
        queue.check_room(1, num_free_slots=3)
    for state in list(queue)[:3]:  # which got the free slots
        queue.remove(state)
    queue.note_plan()
    with pytest.raises(QueueFull, match="2 requests wait, at most 2 may"):
        queue.check_room(1, num_free_slots=3)  # as where the slots are free and the blocks are not


def test_bounds_on_requests_and_tokens_name_the_numbers():
    queue = WaitingQueue(max_requests=2, max_tokens=10)
    queue.check_room(11)  # an empty queue takes a request that is longer than the bound
    queue.push(make_state(1, num_tokens=6))
    queue.check_room(4)
    with pytest.raises(QueueFull) as full:
        queue.check_room(5)
    assert (full.value.bound, full.value.found, full.value.limit) == (QueueBound.TOKENS, 6, 10)
    queue.push(make_state(2))
    with pytest.raises(QueueFull, match="2 requests wait, at most 2 may"):
        queue.check_room(1)
    with pytest.raises(QueueFull, match="0 requests wait, at most 2 may"):
        WaitingQueue(max_requests=2, max_tokens=10).check_room(3, num_requests=3)
