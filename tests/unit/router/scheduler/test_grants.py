from textmill_router.request import GenerationRequest, RequestId, Slot, Standing, token_array
from textmill_router.scheduler.grants import Grants
from textmill_router.scheduler.prefix_cache import PrefixCache
from textmill_router.scheduler.request_state import RequestState, RequestStatus


class Seats:
    """Running requests over a pool with blocks of 4 tokens. The ids of preempted requests are kept."""

    def __init__(self, *, num_blocks: int, ahead: int = 4, regrant_below: int = 2) -> None:
        self.cache = PrefixCache(num_blocks=num_blocks, block_size=4)
        self.grants = Grants(self.cache, ahead_tokens=ahead, regrant_below_tokens=regrant_below)
        self.states: list[RequestState] = []
        self.preempted: list[RequestState] = []

    def admit(self, num_prompt: int, *, max_new: int = 40, priority: int = 0) -> RequestState:
        number = len(self.states) + 1
        request = GenerationRequest(
            request_id=RequestId(number),
            prompt_ids=token_array([1] * num_prompt),
            max_new_tokens=max_new,
            arrival_s=float(number),
            standing=Standing(priority=priority),
        )
        state = RequestState(request)
        assert self.grants.can_admit(state, [], 0)
        self.grants.admit(state, [])
        state.slot = Slot(number)
        state.status = RequestStatus.RUNNING
        self.grants.watch(state)
        self.states.append(state)
        return state

    def running(self) -> list[RequestState]:
        return [state for state in self.states if state.status is RequestStatus.RUNNING]

    def preempt(self, state: RequestState) -> None:
        state.status = RequestStatus.PREEMPTED
        self.preempted.append(state)
        self.grants.release(state)

    def grow(self, state: RequestState, num_tokens: int) -> None:
        state.num_tokens = num_tokens
        self.grants.watch(state)

    def extends(self) -> list[tuple[int, int]]:
        """Return request id and number of blocks of each extend."""
        extends = self.grants.extend_short(self.running, self.preempt)
        return [(extend.request_id, len(extend.block_ids)) for extend in extends]


def test_rule_13_a_grant_covers_the_tokens_and_those_ahead():
    seats = Seats(num_blocks=9, ahead=4)
    assert len(seats.admit(4).block_ids) == 2
    assert len(seats.admit(5).block_ids) == 3
    assert len(seats.admit(5, max_new=1).block_ids) == 2


def test_rule_13_an_extend_comes_when_fewer_places_are_left_than_the_limit():
    seats = Seats(num_blocks=9, ahead=4, regrant_below=2)
    state = seats.admit(4)
    seats.grow(state, 6)  # two of eight places are left
    assert seats.extends() == []
    seats.grow(state, 7)
    assert seats.extends() == [(1, 1)]
    assert seats.extends() == []


def test_rule_14_room_for_each_running_request_stays():
    seats = Seats(num_blocks=5)
    seats.admit(4)
    request = GenerationRequest(RequestId(9), prompt_ids=token_array([1] * 4), max_new_tokens=9, arrival_s=9.0)
    assert seats.grants.can_admit(RequestState(request), [], 1)
    assert not seats.grants.can_admit(RequestState(request), [], 2)


def test_rule_14_shared_blocks_that_nobody_holds_are_not_counted_twice():
    seats = Seats(num_blocks=4)
    first = seats.admit(4, max_new=1)
    first.num_computed_tokens = 4
    seats.cache.index_computed(first)
    seats.grants.release(first)
    request = GenerationRequest(RequestId(9), prompt_ids=token_array([1] * 8), max_new_tokens=5, arrival_s=9.0)
    state = RequestState(request)
    hits = seats.cache.lookup(state)
    assert hits  # of three blocks one was found, so one is left
    assert seats.grants.can_admit(state, hits, 1)
    assert not seats.grants.can_admit(state, hits, 2)


def test_rule_14_the_last_in_order_makes_room_only_when_another_would_starve():
    seats = Seats(num_blocks=4)
    first, second = seats.admit(4), seats.admit(4)
    seats.grow(first, 6)
    assert seats.extends() == []
    seats.grow(first, 7)  # one place is left, so the request starves soon
    assert seats.extends() == [(1, 1)]
    assert seats.preempted == [second]


def test_rule_14_the_one_in_need_may_be_the_victim():
    seats = Seats(num_blocks=4)
    seats.admit(4)
    second = seats.admit(4)
    seats.grow(second, 8)
    assert seats.extends() == []
    assert seats.preempted == [second]


def test_rule_14_priority_comes_before_arrival():
    seats = Seats(num_blocks=4)
    first = seats.admit(4, priority=1)
    second = seats.admit(4, priority=0)
    seats.grow(second, 8)
    assert seats.extends() == [(2, 1)]
    assert seats.preempted == [first]


def test_rule_14_the_order_also_decides_who_is_served_first():
    seats = Seats(num_blocks=5)
    first, second = seats.admit(4), seats.admit(4)
    seats.grow(second, 7)
    seats.grow(first, 7)
    assert seats.extends() == [(1, 1)]
    assert seats.preempted == [second]


def test_a_paused_request_gets_no_blocks_and_takes_none_from_others():
    seats = Seats(num_blocks=5, ahead=4, regrant_below=2)
    paused, other = seats.admit(3), seats.admit(3)
    paused.is_paused = True
    seats.grow(paused, 8)  # no place is left
    seats.grow(other, 7)
    assert seats.extends() == [(2, 1)]
    assert seats.extends() == []
    assert seats.preempted == []
    paused.is_paused = False
    assert seats.extends() == [(1, 1)]
    assert seats.preempted == [other]  # the last in order makes room, as for every request about to starve
