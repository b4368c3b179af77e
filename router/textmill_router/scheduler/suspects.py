"""Who may have killed the shard (rule 22 in docs/wire.md)."""

from textmill_router.scheduler.request_state import RequestState

QUARANTINE_AT_STRIKES = 2


class Suspects:
    """A strike is a death without a token in that epoch. Two running mean: alone in prefill until a token comes."""

    def __init__(self) -> None:
        self._alone: RequestState | None = None

    def is_suspect(self, state: RequestState) -> bool:
        """Whether it may enter only alone."""
        return state.num_strikes >= QUARANTINE_AT_STRIKES

    def is_prefill_closed(self) -> bool:
        """Whether a suspect is on the shard without a token: nobody else may enter."""
        alone = self._alone
        if alone is None:
            return False
        if alone.has_token_in_epoch:
            alone.num_strikes = 0
        elif alone.slot is not None:
            return True
        self._alone = None
        return False

    def enter(self, state: RequestState) -> None:
        """A suspect was admitted."""
        assert not self.is_prefill_closed()
        self._alone = state

    def is_guilty(self, state: RequestState) -> bool:
        """The shard died with this request on it: whether it was the suspect alone in prefill. Counts strikes."""
        is_alone = self._alone is state
        if state.has_token_in_epoch:
            state.num_strikes = 0
            return False
        state.num_strikes += 1
        return is_alone

    def end_epoch(self) -> None:
        """Nobody is on the shard any more."""
        self._alone = None
