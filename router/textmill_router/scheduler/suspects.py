"""Finds the request that may have killed the shard, by counting strikes (rule 22 in docs/wire.md)."""

from textmill_router.scheduler.request_state import RequestState

QUARANTINE_AT_STRIKES = 2


class Suspects:
    """The strikes of requests, and the suspect that is alone in prefill.

    A request with a slot gets a strike when the shard dies before the request has a token in that epoch, and loses its
    strikes when the shard dies after that. A request with two strikes is a suspect. A suspect is admitted alone, and
    stays alone in prefill until it has a token. A request is guilty when the shard dies while the request is such a
    suspect, and also when no other request was without a token at either of its two strikes.
    """

    def __init__(self) -> None:
        self._alone: RequestState | None = None

    def is_suspect(self, state: RequestState) -> bool:
        """Whether this request may be admitted only alone."""
        return state.num_strikes >= QUARANTINE_AT_STRIKES

    def is_prefill_closed(self) -> bool:
        """Whether a suspect has a slot and no token yet, so that no other request may be admitted."""
        alone = self._alone
        if alone is None:
            return False
        if alone.has_token_in_epoch:
            alone.num_strikes = alone.num_lonely_strikes = 0
        elif alone.slot is not None:
            return True
        self._alone = None
        return False

    def enter(self, state: RequestState) -> None:
        """Note that a suspect was admitted."""
        assert not self.is_prefill_closed()
        self._alone = state

    def is_guilty(self, state: RequestState, *, is_alone: bool) -> bool:
        """Note the death of the shard for a request that has a slot.

        `is_alone` says that every other request with a slot has a token in this epoch.
        """
        if state.has_token_in_epoch:
            state.num_strikes = state.num_lonely_strikes = 0
            return False
        is_guilty = self._alone is state or (is_alone and state.num_lonely_strikes > 0)
        state.num_strikes += 1
        state.num_lonely_strikes += is_alone
        return is_guilty

    def end_epoch(self) -> None:
        """Note that no request has a slot any more."""
        self._alone = None
