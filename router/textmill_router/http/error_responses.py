"""Errors become statuses and headers here; the style of a dialect says how their bodies look, here that of TGI."""

from collections.abc import Callable
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
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    RequestTimedOut,
    RetryLater,
    RouteNotFound,
    ShuttingDown,
    StreamOptionsRefused,
    SuffixRefused,
    TemplateFailed,
    ToolError,
    TooManyPrompts,
    Unauthorized,
    UnknownContentCoding,
    UnknownTransferCoding,
    UnsupportedMediaType,
    ValidationFailed,
)

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """HTTP status and the `error_type` of the body."""

    status: int
    error_type: str


_KINDS: dict[type[RequestError], ErrorKind] = {
    BadHttp: ErrorKind(400, "invalid_http"),
    InvalidJson: ErrorKind(400, "invalid_json"),
    StreamOptionsRefused: ErrorKind(400, "validation"),
    Unauthorized: ErrorKind(401, "unauthorized"),
    RouteNotFound: ErrorKind(404, "not_found"),
    ModelNotFound: ErrorKind(404, "model_not_found"),
    MethodNotAllowed: ErrorKind(405, "method_not_allowed"),
    RequestTimedOut: ErrorKind(408, "request_timeout"),
    PayloadTooLarge: ErrorKind(413, "payload_too_large"),
    UnsupportedMediaType: ErrorKind(415, "unsupported_media_type"),
    ValidationFailed: ErrorKind(422, "validation"),
    SuffixRefused: ErrorKind(422, "suffix not supported"),
    TooManyPrompts: ErrorKind(422, "batch size exceeded"),
    TemplateFailed: ErrorKind(422, "template_error"),
    ToolError: ErrorKind(422, "tool_error"),
    GenerationBroke: ErrorKind(424, "generation"),
    Overloaded: ErrorKind(429, "overloaded"),
    HeaderTooLarge: ErrorKind(431, "header_too_large"),
    InternalError: ErrorKind(500, "internal"),
    UnknownTransferCoding: ErrorKind(501, "unknown_transfer_coding"),
    ModelLoading: ErrorKind(503, "loading"),
    ShuttingDown: ErrorKind(503, "shutting_down"),
}

# The prefixes that clients of TGI know.
_PREFIXES = {
    "validation": "Input validation error: ",
    "generation": "Request failed during generation: ",
    "template_error": "Template error: ",
    "tool_error": "Tool error: ",
}


def error_kind(error: RequestError) -> ErrorKind:
    """The row of the nearest class of the tree that has one."""
    for kind in type(error).__mro__:
        if kind in _KINDS:
            return _KINDS[kind]
    raise AssertionError(f"no row for {type(error).__name__}")


def tgi_error_body(error: RequestError) -> bytes:
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


@dataclass(frozen=True, slots=True)
class ErrorStyle:
    """How a dialect tells errors: the HTTP status, the body of a whole answer, the event that ends a stream."""

    status_of: Callable[[RequestError], int]
    body_of: Callable[[RequestError], bytes]
    event_of: Callable[[RequestError], bytes]


def error_event(body: bytes) -> bytes:
    """A server-sent event that holds a body."""
    return b"data: " + body + b"\n\n"


# TGI's own routes, and all answers that are given before a dialect is known.
TGI_ERRORS = ErrorStyle(
    status_of=lambda error: error_kind(error).status,
    body_of=tgi_error_body,
    event_of=lambda error: error_event(tgi_error_body(error)),
)


def error_headers(error: RequestError) -> list[Header]:
    """Headers that an error's status asks for, on every dialect."""
    headers: list[Header] = []
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, UnknownContentCoding):
        headers.append((b"accept-encoding", b"identity"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, RetryLater):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, ShuttingDown | PayloadTooLarge):
        headers.append((b"connection", b"close"))
    return headers
