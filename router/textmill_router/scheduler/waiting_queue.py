"""The queue of requests that wait for a slot."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Set
from enum import Enum
from heapq import merge
from operator import attrgetter

from textmill_router.scheduler.account import Account
from textmill_router.scheduler.request_state import RequestState

_order = attrgetter("order")


class QueueBound(Enum):
    """The bounds of the queue."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SECONDS = "seconds"


class QueueFull(Exception):
    """The queue is full; the caller answers 429. `found` waits now, or would with the new request, of `limit`."""

    def __init__(self, bound: QueueBound, *, found: float, limit: float) -> None:
        super().__init__(f"{found:g} {bound.value} wait, at most {limit:g} may")
        self.bound = bound
        self.found = found
        self.limit = limit


class _Line:
    """The waiting requests of one caller, in their order."""

    __slots__ = ("account", "num_tokens", "requests")

    def __init__(self, account: Account | None) -> None:
        self.account = account
        self.requests: list[RequestState] = []
        self.num_tokens = 0


class WaitingQueue:
    """Requests that ran before come first, then the order is priority, then the caller's share, then arrival.

    Each caller has a line, which is sorted by `RequestState.order`. Between the lines goes first what ran before, then
    the best priority, then the line whose caller has used least (`fair_shares.py`). With one line the order is that of
    the line.

    The bounds count all waiting requests but those that will have a free slot with the next plan. Only new requests are
    refused. A request that alone is longer than
    `max_tokens` may enter an empty queue, because otherwise it could never enter.
    """

    def __init__(self, *, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._lines: dict[Account | None, _Line] = {}  # none of them is empty
        self._num_requests = 0
        self._num_tokens = 0
        self._num_new_tokens = 0
        self._num_unplanned = 0  # requests that came since the last plan
        self.num_with_media = 0  # waiting requests with images

    def __len__(self) -> int:
        return self._num_requests

    def __iter__(self) -> Iterator[RequestState]:
        """All waiting requests by `RequestState.order`, whoever called."""
        return merge(*(line.requests for line in self._lines.values()), key=_order)

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting requests, prompts and outputs so far."""
        return self._num_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens of all waiting requests that no block held when they came, so that a step has to compute them."""
        return self._num_new_tokens

    @property
    def has_several_callers(self) -> bool:
        """Whether requests of more than one caller wait."""
        return len(self._lines) > 1

    def accounts(self) -> Iterator[Account]:
        """The accounts of the callers whose requests wait."""
        return (account for account in self._lines if account is not None)

    def in_turn(self, passed_over: Set[Account | None]) -> Iterator[RequestState]:
        """All waiting requests in the order in which they should get a slot.

        The caller of this method may charge the accounts and add to `passed_over` between two steps of the iterator;
        the lines of accounts that are passed over give no further request. The queue must not change meanwhile.
        """
        if len(self._lines) <= 1:
            for line in self._lines.values():
                yield from line.requests
            return
        cursors = [_Cursor(line) for line in self._lines.values()]
        while cursors:
            cursor = min(cursors, key=_Cursor.turn)
            if cursor.line.account in passed_over:
                cursors.remove(cursor)
                continue
            state = cursor.state
            cursor.at += 1
            if cursor.at == len(cursor.line.requests):
                cursors.remove(cursor)
            yield state

    def check_room(self, num_tokens: int, num_requests: int = 1, *, num_free_slots: int = 0) -> None:
        """Raise `QueueFull` when new requests of so many prompt tokens together may not enter.

        Of the requests that no plan has passed over yet, as many as there are free slots count as seated. A burst that
        finds free slots is not refused for this reason.
        """
        num_waiting = self._num_requests - min(self._num_unplanned, self._num_requests, num_free_slots)
        if num_waiting + num_requests > self._max_requests:
            raise QueueFull(QueueBound.REQUESTS, found=num_waiting, limit=self._max_requests)
        if self._num_requests and self._num_tokens + num_tokens > self._max_tokens:
            raise QueueFull(QueueBound.TOKENS, found=self._num_tokens, limit=self._max_tokens)

    def num_tokens_before(self, account: Account | None, weight: float, priority: int) -> int:
        """The tokens of waiting requests that go before a new request of this caller, weight and priority.

        While the caller's own line is served, each other line gets tokens by the ratio of the weights.
        """
        line = self._lines.get(account)
        own = _num_tokens_up_to(line, priority) if line is not None else 0
        total = own
        for other in self._lines.values():
            if other is not line:
                ratio = (other.account.weight if other.account is not None else 1.0) / weight
                # A line that is longer than its share still has the request that it is just served with.
                share = int(own * ratio) + other.requests[0].num_tokens
                total += min(_num_tokens_up_to(other, priority), share)
        return total

    def note_plan(self) -> None:
        """Note that all requests that are here have waited for a plan, which had no place for them."""
        self._num_unplanned = 0

    @property
    def num_next_tokens(self) -> int:
        """Tokens of the request that waits first in its line and has fewest, 0 where none waits."""
        return min((line.requests[0].num_tokens for line in self._lines.values()), default=0)

    def push(self, state: RequestState) -> None:
        """Put a request at its place in the order. Never refuses, because a request that has run was let in before."""
        line = self._lines.get(state.account)
        if line is None:
            line = self._lines[state.account] = _Line(state.account)
        insort(line.requests, state, key=_order)
        line.num_tokens += state.num_tokens
        self._num_requests += 1
        self._num_unplanned += 1
        self._num_tokens += state.num_tokens
        self._num_new_tokens += state.num_new_tokens
        self.num_with_media += bool(state.media_spans)

    def remove(self, state: RequestState) -> None:
        """Take a waiting request out of the queue."""
        line = self._lines[state.account]
        at = bisect_left(line.requests, state.order, key=_order)
        assert line.requests[at] is state, state.request_id
        del line.requests[at]
        if not line.requests:
            del self._lines[state.account]
        line.num_tokens -= state.num_tokens
        self._num_requests -= 1
        self._num_tokens -= state.num_tokens
        self._num_new_tokens -= state.num_new_tokens
        self.num_with_media -= bool(state.media_spans)


class _Cursor:
    """The place in a line up to which an iteration has come."""

    __slots__ = ("at", "line")

    def __init__(self, line: _Line) -> None:
        self.line = line
        self.at = 0

    @property
    def state(self) -> RequestState:
        return self.line.requests[self.at]

    def turn(self) -> tuple[int, int, float, tuple[int, int, float, int]]:
        """The key by which the lines take turns. What ran before goes by its own order, whoever called."""
        order = self.state.order
        has_not_run, priority, _, _ = order
        account = self.line.account
        used = account.used if has_not_run and account is not None else 0.0
        return has_not_run, priority, used, order


def _num_tokens_up_to(line: _Line, priority: int) -> int:
    """The tokens of the requests of a line that have this priority or a better one."""
    if line.requests[-1].request.priority <= priority:
        return line.num_tokens  # as almost always
    return sum(state.num_tokens for state in line.requests if state.request.priority <= priority)
