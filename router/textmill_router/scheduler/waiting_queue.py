"""The queue of requests that wait for a slot."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from textmill_router.scheduler.request_state import RequestState

_order = attrgetter("order")


class QueueFull(Exception):
    """The queue is full; the caller answers 429."""

    def __init__(self, *, num_requests: int, max_requests: int, num_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"{num_requests} requests wait, at most {max_requests} may (--max-queued-requests)"
            if num_requests >= max_requests
            else f"prompts of {num_tokens} tokens wait, at most {max_tokens} may (--max-queued-tokens)"
        )
        self.num_requests = num_requests
        self.max_requests = max_requests
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


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

    def check_room(self, num_tokens: int) -> None:
        """Raise `QueueFull` when a new request of so many prompt tokens may not enter."""
        is_over_tokens = bool(self._requests) and self._num_tokens + num_tokens > self._max_tokens
        if len(self._requests) >= self._max_requests or is_over_tokens:
            raise QueueFull(
                num_requests=len(self._requests),
                max_requests=self._max_requests,
                num_tokens=self._num_tokens,
                max_tokens=self._max_tokens,
            )

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
