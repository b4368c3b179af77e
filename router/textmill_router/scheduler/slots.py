"""The seats of the shard as the router sees them: free, taken, leaving (rules 5 and 6 in docs/wire.md)."""

from collections import deque
from collections.abc import Iterator

from textmill_router.request import Slot
from textmill_router.scheduler.request_state import RequestState, RequestStatus


class Seats:
    """A seat is freed by its occupant's last row, or by a result that knows the drop; nothing else frees it."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.seats: list[RequestState | None] = [None] * num_slots
        self._free = [Slot(slot) for slot in reversed(range(num_slots))]
        self._dropped: deque[RequestState] = deque()  # drop sent, in the order of plans

    @property
    def num_free(self) -> int:
        """Seats that may be given at once."""
        return len(self._free)

    def occupants(self) -> Iterator[RequestState]:
        """Everyone seated, leaving ones included."""
        return (state for state in self.seats if state is not None)

    def running(self) -> list[RequestState]:
        """Everyone seated who is not leaving."""
        return [state for state in self.seats if state is not None and state.status is RequestStatus.RUNNING]

    def is_any_in_prefill(self) -> bool:
        """Whether anyone seated has no token yet in this seat."""
        return any(state.is_in_prefill for state in self.occupants())

    def can_seat(self) -> bool:
        """Whether a seat is free."""
        return bool(self._free)

    def seat(self, state: RequestState) -> None:
        """Give a free seat. Ask first."""
        assert self._free, "no free slot"
        state.slot = self._free.pop()
        self.seats[state.slot] = state

    def drop_sent(self, state: RequestState, plan_number: int) -> None:
        """The plan of this number drops the occupant; its seat is free once a result has applied that plan."""
        assert not self._dropped or self._dropped[-1].drop_plan <= plan_number, plan_number
        state.drop_plan = plan_number
        self._dropped.append(state)

    def free(self, state: RequestState) -> None:
        """The occupant's last row has come, or its drop is acknowledged."""
        slot = state.slot
        assert slot is not None, state
        assert self.seats[slot] is state, state
        self.seats[slot] = None
        self._free.append(slot)
        state.slot = None

    def acknowledge(self, plan_applied: int) -> list[RequestState]:
        """Free the seats of those whose drop was applied; returns them. Earlier finishers are skipped (rule 5)."""
        gone = []
        while self._dropped and self._dropped[0].drop_plan <= plan_applied:
            state = self._dropped.popleft()
            if state.slot is not None:
                self.free(state)
                gone.append(state)
        return gone
