"""The statuses and headers of errors, and TGI's style; the style of a dialect says how the bodies of errors look."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from textmill_router.errors import (
    BadAdapterCall,
    BadHttp,
    DeadlineMissed,
    Forbidden,
    GenerationBroke,
    HeaderTooLarge,
    InternalError,
    InvalidJson,
    MethodNotAllowed,
    ModelLoading,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    Recovering,
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
    TooManyRows,
    Unauthorized,
    UnknownContentCoding,
    UnknownTransferCoding,
    UnsupportedMediaType,
    ValidationFailed,
    WrongTask,
)

Header = tuple[bytes, bytes]
CLOSE: Header = (b"connection", b"close")


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """The HTTP status of a kind of error, and the `error_type` in its body."""

    status: int
    error_type: str


_KINDS: dict[type[RequestError], ErrorKind] = {
    BadHttp: ErrorKind(400, "invalid_http"),
    InvalidJson: ErrorKind(400, "invalid_json"),
    StreamOptionsRefused: ErrorKind(400, "validation"),
    Unauthorized: ErrorKind(401, "unauthorized"),
    BadAdapterCall: ErrorKind(400, "validation"),
    Forbidden: ErrorKind(403, "forbidden"),
    RouteNotFound: ErrorKind(404, "not_found"),
    ModelNotFound: ErrorKind(404, "model_not_found"),
    MethodNotAllowed: ErrorKind(405, "method_not_allowed"),
    RequestTimedOut: ErrorKind(408, "request_timeout"),
    PayloadTooLarge: ErrorKind(413, "payload_too_large"),
    UnsupportedMediaType: ErrorKind(415, "unsupported_media_type"),
    ValidationFailed: ErrorKind(422, "validation"),
    SuffixRefused: ErrorKind(422, "suffix not supported"),
    TooManyPrompts: ErrorKind(422, "batch size exceeded"),
    TooManyRows: ErrorKind(422, "batch size exceeded"),
    WrongTask: ErrorKind(422, "task"),
    TemplateFailed: ErrorKind(422, "template_error"),
    ToolError: ErrorKind(422, "tool_error"),
    GenerationBroke: ErrorKind(424, "generation"),
    Overloaded: ErrorKind(429, "overloaded"),
    HeaderTooLarge: ErrorKind(431, "header_too_large"),
    InternalError: ErrorKind(500, "internal"),
    UnknownTransferCoding: ErrorKind(501, "unknown_transfer_coding"),
    ModelLoading: ErrorKind(503, "loading"),
    Recovering: ErrorKind(503, "recovering"),
    ShuttingDown: ErrorKind(503, "shutting_down"),
    DeadlineMissed: ErrorKind(504, "timeout"),
}

# Prefixes of messages, by `error_type`, which clients of TGI look for.
_PREFIXES = {
    "validation": "Input validation error: ",
    "generation": "Request failed during generation: ",
    "template_error": "Template error: ",
    "tool_error": "Tool error: ",
}


def error_kind(error: RequestError) -> ErrorKind:
    """Return the row of the error's class, or of the nearest class above it that has a row."""
    for kind in type(error).__mro__:
        if kind in _KINDS:
            return _KINDS[kind]
    raise AssertionError(f"no row for {type(error).__name__}")


def tgi_error_body(error: RequestError) -> bytes:
    """Return `{"error", "error_type"}` as JSON, with the phase and the estimated time while the model loads."""
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
    """Return a server-sent event that holds the body of an error."""
    return b"data: " + body + b"\n\n"


# The style of TGI's own routes, and of all errors that are answered before a dialect is known.
TGI_ERRORS = ErrorStyle(
    status_of=lambda error: error_kind(error).status,
    body_of=tgi_error_body,
    event_of=lambda error: error_event(tgi_error_body(error)),
)


def error_headers(error: RequestError) -> list[Header]:
    """Return the headers that the error's status asks for in every dialect."""
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
        headers.append(CLOSE)
    return headers
