"""Errors become statuses, headers and bodies here and nowhere else."""

from dataclasses import dataclass

import msgspec

from textmill_router.errors import (
    BadHttp,
    GenerationBroke,
    HeaderTooLarge,
    InternalError,
    InvalidJson,
    MethodNotAllowed,
    ModelLoading,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    RequestTimedOut,
    RetryLater,
    RouteNotFound,
    ShuttingDown,
    Unauthorized,
    UnsupportedMediaType,
    ValidationFailed,
)
from textmill_router.request import Failure, FailureCode

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """HTTP status and the `error_type` of the body."""

    status: int
    error_type: str


_KINDS: dict[type[RequestError], ErrorKind] = {
    BadHttp: ErrorKind(400, "invalid_http"),
    InvalidJson: ErrorKind(400, "invalid_json"),
    Unauthorized: ErrorKind(401, "unauthorized"),
    RouteNotFound: ErrorKind(404, "not_found"),
    MethodNotAllowed: ErrorKind(405, "method_not_allowed"),
    RequestTimedOut: ErrorKind(408, "request_timeout"),
    PayloadTooLarge: ErrorKind(413, "payload_too_large"),
    UnsupportedMediaType: ErrorKind(415, "unsupported_media_type"),
    ValidationFailed: ErrorKind(422, "validation"),
    GenerationBroke: ErrorKind(424, "generation"),
    Overloaded: ErrorKind(429, "overloaded"),
    HeaderTooLarge: ErrorKind(431, "header_too_large"),
    InternalError: ErrorKind(500, "internal"),
    ModelLoading: ErrorKind(503, "loading"),
    ShuttingDown: ErrorKind(503, "shutting_down"),
}

# The prefixes that clients of the native dialect know.
_PREFIXES = {"validation": "Input validation error: ", "generation": "Request failed during generation: "}


def error_kind(error: RequestError) -> ErrorKind:
    """The row of the nearest class of the tree that has one."""
    for kind in type(error).__mro__:
        if kind in _KINDS:
            return _KINDS[kind]
    raise AssertionError(f"no row for {type(error).__name__}")


def native_error_body(error: RequestError) -> bytes:
    """`{"error", "error_type"}`, with the phase while loading."""
    kind = error_kind(error)
    body: dict[str, str | float] = {
        "error": _PREFIXES.get(kind.error_type, "") + str(error),
        "error_type": kind.error_type,
    }
    if isinstance(error, ModelLoading):
        body["phase"] = error.phase
        body["estimated_time"] = error.estimated_s
    return msgspec.json.encode(body)


def error_headers(error: RequestError) -> list[Header]:
    """Headers that an error's status asks for, on every dialect."""
    headers: list[Header] = []
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, RetryLater):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, ShuttingDown | PayloadTooLarge):
        headers.append((b"connection", b"close"))
    return headers


def generation_error(failure: Failure) -> RequestError:
    """The error that a failure after admission is to its client."""
    match failure.code:
        case FailureCode.SHUTDOWN:
            return ShuttingDown(failure.message, retry_after_s=1)
        case FailureCode.PLAN_REJECTED:
            return InternalError(failure.message)
        case FailureCode.NOT_FINITE | FailureCode.INTERNAL | FailureCode.SUSPECT:
            return GenerationBroke(failure.message)
