"""What each caller has had of the machine, so that the caller who has had least goes next.

docs/decisions/0017-callers-share-tokens-by-deficit.md says why, with the figures of a simulation.
"""

from collections.abc import Iterable

from textmill_router.request import Standing
from textmill_router.scheduler.account import Account


class FairShares:
    """The accounts of all callers of one scheduler.

    A caller's deficit is what the caller lacks to the caller who has had most. Among callers that wait the largest
    deficit goes first, which is the smallest `used`. A prompt is charged when its request gets a slot, for the tokens
    that no cache held, and output tokens once they are computed. A caller who comes back after a pause gets no credit
    for the pause.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def account_of(self, standing: Standing) -> Account:
        """Return the account of a caller, with the weight that the caller has now."""
        account = self._accounts.get(standing.caller)
        if account is None:
            account = self._accounts[standing.caller] = Account(len(self._accounts), standing.weight)
        account.weight = standing.weight
        return account

    def find(self, caller: str) -> Account | None:
        """Return the account of a caller, None where no request of the caller has come."""
        return self._accounts.get(caller)

    @property
    def has_several(self) -> bool:
        """Whether requests of more than one caller have come."""
        return len(self._accounts) > 1

    def num_computed_tokens(self) -> dict[str, int]:
        """Return the tokens computed for each caller so far, by the caller's name."""
        return {name: account.num_computed_tokens for name, account in self._accounts.items()}

    def enter(self, account: Account, busy: Iterable[Account | None]) -> None:
        """Let a caller begin again behind no one and before no one; `busy` are the accounts with requests now.

        Does nothing for a caller who is busy.
        """
        least = None
        for other in busy:
            if other is account:
                return
            if other is None:
                continue
            if least is None or other.used < least:
                least = other.used
        if least is not None and least > account.used:
            account.used = least
