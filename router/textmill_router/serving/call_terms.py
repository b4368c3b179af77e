"""The terms on which the requests of one call wait and run, which follow from the caller and not from the texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from textmill_router.errors import ValidationFailed
from textmill_router.http.api_keys import ANYBODY, Caller
from textmill_router.http.call import Call
from textmill_router.http.error_responses import Header
from textmill_router.http.key_file import MAX_PRIORITY, MIN_PRIORITY
from textmill_router.request import EQUAL, Adapter, Standing

PRIORITY_HEADER, TIMEOUT_HEADER = "x-priority", "x-request-timeout-ms"
MAX_TIMEOUT_MS = 86_400_000
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class CallTerms:
    """The facts that every request of a call carries to the scheduler.

    `cache_salt` keeps the prefixes and grammars of callers apart; it is empty where all callers share them.
    `deadline_s` is the time by which the answer must be complete, on the clock of `time.monotonic`; None: the client
    did not say. `adapter` is held by the call, and None where the base model answers alone.
    """

    caller: Caller = ANYBODY
    standing: Standing = EQUAL
    cache_salt: bytes = b""
    deadline_s: float | None = None
    adapter: Adapter | None = None


def salt_of(caller: Caller, *, shares_prefixes: bool) -> bytes:
    """Return what keeps a caller's cached work apart from that of others; empty where all callers share it."""
    return b"" if shares_prefixes else caller.salt


def terms_of(
    call: Call,
    headers: Sequence[Header],
    priority: int | None,
    *,
    shares_prefixes: bool,
    adapter: Adapter | None = None,
) -> CallTerms:
    """Return the terms of a call. `priority` is that of the body; the header wins.

    `shares_prefixes` is the setting `--shared-prefix-cache`. Raises ValidationFailed for a header or a priority that is
    out of its range, or better than the caller may ask for.
    """
    caller = call.caller
    timeout_ms = _whole_number(headers, TIMEOUT_HEADER, 1, MAX_TIMEOUT_MS)
    return CallTerms(
        caller,
        Standing(caller.name, caller.weight, _priority(caller, headers, priority)),
        salt_of(caller, shares_prefixes=shares_prefixes),
        None if timeout_ms is None else call.arrival_s + timeout_ms / 1000,
        adapter,
    )


def _priority(caller: Caller, headers: Sequence[Header], priority: int | None) -> int:
    field, asked = "priority", priority
    of_header = _whole_number(headers, PRIORITY_HEADER, MIN_PRIORITY, MAX_PRIORITY)
    if of_header is not None:
        field, asked = PRIORITY_HEADER, of_header
    if asked is None:
        return max(0, caller.min_priority)
    if not MIN_PRIORITY <= asked <= MAX_PRIORITY:
        raise ValidationFailed(f"`{field}` must be {MIN_PRIORITY} to {MAX_PRIORITY}, found {asked}", field=field)
    if asked < caller.min_priority:
        raise ValidationFailed(
            f"`{field}` must be {caller.min_priority} to {MAX_PRIORITY} for this API key, found {asked}; a smaller "
            "number goes first, and the operator sets the best one of each key (min_priority in --api-key-file)",
            field=field,
        )
    return asked


def _whole_number(headers: Sequence[Header], name: str, low: int, high: int) -> int | None:
    """Return the number in a header, or None without the header. Raises ValidationFailed."""
    for key, value in headers:
        if key == name.encode():
            text = value.strip().decode("latin-1")
            digits = text.removeprefix("-")
            is_number = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS
            if not is_number or not low <= int(text) <= high:
                shown = text[:20]
                raise ValidationFailed(
                    f"the header {name} must be a whole number from {low} to {high}, found {shown!r}", field=name
                )
            return int(text)
    return None
