"""What each caller has had of the machine, so that the caller who has had least goes next.

docs/decisions/0017-callers-share-tokens-by-deficit.md says why, with the figures of a simulation.
"""

from collections.abc import Iterable
from typing import Protocol

from textmill_router.request import Standing
from textmill_router.scheduler.account import Account


class Holder(Protocol):
    """A scheduler, as the accounts see it."""

    def busy_accounts(self) -> Iterable[Account | None]:
        """The accounts of the callers with a request here, some of them more than once."""
        ...

    def charge_outputs(self) -> None:
        """Charge the callers for the output tokens computed here since the last charge."""
        ...


class FairShares:
    """The accounts of all callers. The schedulers of several replicas share them, so that shares hold over all.

    A caller's deficit is what the caller lacks to the caller who has had most. Among callers that wait the largest
    deficit goes first, which is the smallest `used`. A prompt is charged when its request gets a slot, for the tokens
    that no cache held, and output tokens once they are computed. A caller who comes back after a pause gets no credit
    for the pause.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._holders: list[Holder] = []

    def join(self, holder: Holder) -> None:
        """Count the requests of this scheduler too, from now on."""
        self._holders.append(holder)

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

    def charge_outputs(self) -> None:
        """Charge all callers for the output tokens computed so far, before a choice among them."""
        for holder in self._holders:
            holder.charge_outputs()

    def enter(self, account: Account) -> None:
        """Let a caller begin again behind no one and before no one. Does nothing for a caller who has a request."""
        least = None
        for holder in self._holders:
            for other in holder.busy_accounts():
                if other is account:
                    return
                if other is not None and (least is None or other.used < least):
                    least = other.used
        if least is not None and least > account.used:
            account.used = least
