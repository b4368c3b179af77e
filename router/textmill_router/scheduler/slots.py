"""The router's view of the shard's slots: free, taken, or leaving (rules 5 and 6 in docs/wire.md)."""

from collections import deque
from collections.abc import Iterator

from textmill_router.request import Slot
from textmill_router.scheduler.request_state import RequestState, RequestStatus


class Seats:
    """The slots and their occupants.

    A slot becomes free with its occupant's last row, or with a result that has applied the drop, and never otherwise.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.seats: list[RequestState | None] = [None] * num_slots
        self._free = [Slot(slot) for slot in reversed(range(num_slots))]
        self._dropped: deque[RequestState] = deque()  # drop sent, in the order of plans

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def occupants(self) -> Iterator[RequestState]:
        """All requests that have a slot, also those that are leaving."""
        return (state for state in self.seats if state is not None)

    def running(self) -> list[RequestState]:
        """All requests that have a slot and are not leaving."""
        return [state for state in self.seats if state is not None and state.status is RequestStatus.RUNNING]

    def is_any_in_prefill(self) -> bool:
        """Whether a request that has a slot has no token yet in that slot."""
        return any(state.is_in_prefill for state in self.occupants())

    def can_seat(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def seat(self, state: RequestState) -> None:
        """Give the request a free slot. Call only if `can_seat`."""
        assert self._free, "no free slot"
        state.slot = self._free.pop()
        self.seats[state.slot] = state

    def drop_sent(self, state: RequestState, plan_number: int) -> None:
        """Note which plan drops the occupant. The slot is free once a result has applied that plan."""
        assert not self._dropped or self._dropped[-1].drop_plan <= plan_number, plan_number
        state.drop_plan = plan_number
        self._dropped.append(state)

    def free(self, state: RequestState) -> None:
        """Free a slot: the occupant's last row has come, or its drop is acknowledged."""
        slot = state.slot
        assert slot is not None, state
        assert self.seats[slot] is state, state
        self.seats[slot] = None
        self._free.append(slot)
        state.slot = None

    def acknowledge(self, plan_applied: int) -> list[RequestState]:
        """Free the slots whose drop was applied, and return their occupants.

        A request that had finished before its drop was applied is not among them (rule 5).
        """
        gone = []
        while self._dropped and self._dropped[0].drop_plan <= plan_applied:
            state = self._dropped.popleft()
            if state.slot is not None:
                self.free(state)
                gone.append(state)
        return gone
