"""Predicts how long a new request would wait, from the speed at which waiting requests have left the queue."""

HALF_LIFE_S = 20.0  # an observation of this age counts half
LEAST_OBSERVED_S = 0.5  # with less time in which requests waited there is no prediction


class QueuePace:
    """The tokens of requests that left the queue for a slot, per second in which requests waited.

    Slots, blocks and the budget of prefills all hold requests back, and the pace holds them all. Requests that got a
    slot at once say nothing of the pace and are not observed.
    """

    def __init__(self) -> None:
        self._waiting_since_s: float | None = None  # None while nothing is left waiting
        self._num_tokens = 0.0  # both sums decay with the time observed
        self._observed_s = 0.0

    def note(self, num_admitted_tokens: int, *, is_any_left: bool, now: float) -> None:
        """Note that requests of so many tokens left the queue; call after each round of admissions."""
        since = self._waiting_since_s
        if since is not None:
            if num_admitted_tokens == 0 and is_any_left:
                return  # the time is counted with the next admission
            passed_s = now - since
            decay = 0.5 ** (passed_s / HALF_LIFE_S)
            self._num_tokens = self._num_tokens * decay + num_admitted_tokens
            self._observed_s = self._observed_s * decay + passed_s
        self._waiting_since_s = now if is_any_left else None

    def wait_s(self, num_tokens_ahead: int, num_next_tokens: int, now: float) -> float | None:
        """Return the seconds until so many waiting tokens have left, or None before enough was observed.

        `num_next_tokens` are those of the request that leaves next; the best guess is that it leaves now.
        """
        num_tokens, observed_s = self._num_tokens, self._observed_s
        if self._waiting_since_s is not None:
            passed_s = now - self._waiting_since_s
            decay = 0.5 ** (passed_s / HALF_LIFE_S)
            num_tokens = num_tokens * decay + num_next_tokens
            observed_s = observed_s * decay + passed_s
        if observed_s < LEAST_OBSERVED_S or num_tokens <= 0:
            return None
        return num_tokens_ahead * observed_s / num_tokens
