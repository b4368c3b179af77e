"""The queue of requests that wait for a slot."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import Enum
from operator import attrgetter

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


class WaitingQueue:
    """Requests that ran before come first, then the order is priority, then arrival (`RequestState.order`).

    The bounds count all waiting requests, but only new requests are refused. A request that alone is longer than
    `max_tokens` may enter an empty queue, because otherwise it could never enter.
    """

    def __init__(self, *, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._requests: list[RequestState] = []
        self._num_tokens = 0
        self._num_new_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._requests)

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting requests, prompts and outputs so far."""
        return self._num_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens of all waiting requests that no block held when they came, so that a step has to compute them."""
        return self._num_new_tokens

    def check_room(self, num_tokens: int, num_requests: int = 1) -> None:
        """Raise `QueueFull` when new requests of so many prompt tokens together may not enter."""
        if len(self._requests) + num_requests > self._max_requests:
            raise QueueFull(QueueBound.REQUESTS, found=len(self._requests), limit=self._max_requests)
        if self._requests and self._num_tokens + num_tokens > self._max_tokens:
            raise QueueFull(QueueBound.TOKENS, found=self._num_tokens, limit=self._max_tokens)

    @property
    def num_next_tokens(self) -> int:
        """Tokens of the first waiting request, 0 where none waits."""
        return self._requests[0].num_tokens if self._requests else 0

    def push(self, state: RequestState) -> None:
        """Put a request at its place in the order. Never refuses, because a request that has run was let in before."""
        insort(self._requests, state, key=_order)
        self._num_tokens += state.num_tokens
        self._num_new_tokens += state.num_new_tokens

    def remove(self, state: RequestState) -> None:
        """Take a waiting request out of the queue."""
        at = bisect_left(self._requests, state.order, key=_order)
        assert self._requests[at] is state, state.request_id
        del self._requests[at]
        self._num_tokens -= state.num_tokens
        self._num_new_tokens -= state.num_new_tokens
