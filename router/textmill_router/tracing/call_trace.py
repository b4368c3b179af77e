"""What a call that is traced notes while it runs, and the phases in which its time went. No library is needed here."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from textmill_router.request import RequestTimes

CLIENT_LEFT = "client_left"  # the error type of a call whose client does not wait for the end
Attribute = str | bool | int | float | list[str]


class TimedRequest(Protocol):
    """A request of the call. Its times grow while the request runs."""

    @property
    def times(self) -> RequestTimes: ...


@dataclass(slots=True)
class CallTrace:
    """The notes of one call. All times are on the clock of `time.monotonic`.

    `trace_id`, 32 hexadecimal digits, is the caller's or a new one, and stands in the log line of the call too.
    `parent` holds the headers `traceparent` and `tracestate` as the caller sent them. `validated_s` is None until the
    prompts obey all rules, and stays None for calls that do not generate.
    """

    trace_id: str
    parent: dict[str, str]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    validated_s: float | None = None
    requests: list[TimedRequest] = field(default_factory=list)


def new_trace_id() -> str:
    """Return a random id for the trace of a call whose caller names none."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedCall:
    """The facts of HTTP that are known when a call has ended.

    `route` is the path of the route, or None where no route was found. `status` is 0 where no answer was begun.
    `error_type` names the error that ended the call, also after an answer had begun.
    """

    method: str
    path: str
    route: str | None
    status: int
    error_type: str | None
    request_id: str
    server: tuple[str, int] | None
    arrival_s: float
    end_s: float


class CallTracer(Protocol):
    """Makes the spans of a call at its end. Must neither block nor raise."""

    def end(self, trace: CallTrace, call: EndedCall) -> None: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a call's time, on the clock of `time.monotonic`."""

    name: str
    start_s: float
    end_s: float


def phases_of(trace: CallTrace, arrival_s: float) -> Iterator[Phase]:
    """Yield the phases that the call has completed, in order: `validate`, `queue`, `prefill`, `decode`.

    Of several requests the queue lasts until the first leaves it, the prefill until the first token of any, and the
    decoding until the last token of all.
    """
    if trace.validated_s is None:
        return
    yield Phase("validate", arrival_s, trace.validated_s)
    times = [request.times for request in trace.requests]
    begin_s = min((one.arrival_s for one in times), default=None)
    admitted_s = _least([one.admitted_s for one in times])
    first_token_s = _least([one.first_token_s for one in times])
    if begin_s is None or admitted_s is None:
        return
    yield Phase("queue", begin_s, admitted_s)
    if first_token_s is None:
        return
    yield Phase("prefill", admitted_s, first_token_s)
    ends_s = [one.end_s for one in times if one.end_s is not None]
    if len(ends_s) == len(times):
        yield Phase("decode", first_token_s, max(ends_s))


def _least(moments_s: Sequence[float | None]) -> float | None:
    return min((moment_s for moment_s in moments_s if moment_s is not None), default=None)
