"""The terms on which the requests of one call wait and run, which follow from the caller and not from the texts."""

from dataclasses import dataclass

from textmill_router.http.api_keys import Caller


@dataclass(frozen=True, slots=True)
class CallTerms:
    """The facts that every request of a call carries to the scheduler.

    `cache_salt` keeps the prefixes of callers apart; it is empty where all callers share them.
    """

    cache_salt: bytes = b""


def terms_of(caller: Caller, *, shares_prefixes: bool) -> CallTerms:
    """Return the terms of a caller's calls. `shares_prefixes` is the setting `--shared-prefix-cache`."""
    return CallTerms(cache_salt=b"" if shares_prefixes else caller.salt)
