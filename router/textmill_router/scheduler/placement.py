"""Chooses the replica that runs a request, by the prefix that a replica knows and the work that waits there.

Everything here is pure. `bench/placement.py` simulates the choice, and docs/decisions/ has the figures.
"""

from collections.abc import Sequence

from textmill_router.request import RequestId
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.scheduler import Scheduler

# The price of one more request beside a new one, in tokens of prefill.
TOKENS_PER_NEIGHBOUR = 64
_MAX_COMING_BLOCKS = 1 << 16


class Placement:
    """The chooser of a router with several replicas.

    A prefix counts as known where its blocks are indexed, where a running request computes them, or where a request
    waits that will compute them. The placement keeps the hashes of the waiting requests, and forgets those of a replica
    once nothing waits there.
    """

    def __init__(self, num_replicas: int) -> None:
        self._coming: list[set[bytes]] = [set() for _ in range(num_replicas)]
        self._next = 0  # the replica that wins between equal prices

    def rank(self, state: RequestState, schedulers: Sequence[Scheduler | None]) -> list[int]:
        """Return the numbers of the replicas that could run a request, the cheapest first.

        `schedulers` has None for a replica that takes no request now. The leader's replica comes first, because
        sequences that share a prefill go together.
        """
        leader_at = _replica_of(state.request.shares_prompt_of, schedulers)
        prices: list[tuple[bool, int, int, int]] = []
        num_replicas = len(schedulers)
        for replica, scheduler in enumerate(schedulers):
            if scheduler is None or not scheduler.can_ever_hold(state):
                continue
            turn = (replica - self._next) % num_replicas
            prices.append((replica != leader_at, self._price(state, scheduler, replica), turn, replica))
        return [replica for *_, replica in sorted(prices)]

    def note(self, state: RequestState, replica: int, scheduler: Scheduler) -> None:
        """Note that a request goes to this replica, whose scheduler is given. Call before the scheduler gets it."""
        self._next = (replica + 1) % len(self._coming)
        coming = self._coming[replica]
        state.num_new_tokens = self._num_own_tokens(state, scheduler, replica)
        if len(coming) > _MAX_COMING_BLOCKS:
            coming.clear()
        coming.update(scheduler.prefix_hashes(state))

    def spread(
        self, states: Sequence[RequestState], schedulers: Sequence[Scheduler | None]
    ) -> tuple[list[tuple[RequestState, int]], list[RequestState]]:
        """Hand requests that a scheduler gave away to the others, in their order.

        Returns the requests with their new replicas, and the requests that fit no open replica.
        """
        placed: list[tuple[RequestState, int]] = []
        homeless: list[RequestState] = []
        for state in states:
            ranking = self.rank(state, schedulers)
            scheduler = schedulers[ranking[0]] if ranking else None
            if scheduler is None:
                homeless.append(state)
                continue
            self.note(state, ranking[0], scheduler)
            scheduler.adopt(state)
            placed.append((state, ranking[0]))
        return placed, homeless

    def _price(self, state: RequestState, scheduler: Scheduler, replica: int) -> int:
        """The price of a replica, in tokens of prefill: the request's own, those before it, and its neighbours."""
        coming = self._coming[replica]
        if coming and not scheduler.has_waiting:
            coming.clear()
        own = self._num_own_tokens(state, scheduler, replica)
        return own + scheduler.num_queued_tokens + TOKENS_PER_NEIGHBOUR * scheduler.num_requests

    def _num_own_tokens(self, state: RequestState, scheduler: Scheduler, replica: int) -> int:
        """The tokens that the replica would compute for this request."""
        return state.num_tokens - scheduler.num_known_prefix_tokens(state, self._coming[replica])


def _replica_of(request_id: RequestId | None, schedulers: Sequence[Scheduler | None]) -> int:
    """The replica that has this request, or -1."""
    if request_id is not None:
        for replica, scheduler in enumerate(schedulers):
            if scheduler is not None and scheduler.has(request_id):
                return replica
    return -1
