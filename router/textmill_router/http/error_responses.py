"""Errors become statuses, headers and bodies here and nowhere else."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

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
    OverBudget,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    RequestTimedOut,
    RetryLater,
    RouteNotFound,
    ShuttingDown,
    SuffixRefused,
    TemplateFailed,
    ToolError,
    TooManyPrompts,
    Unauthorized,
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
    ModelLoading: ErrorKind(503, "loading"),
    ShuttingDown: ErrorKind(503, "shutting_down"),
}

# The prefixes that clients of the native dialect know.
_PREFIXES = {
    "validation": "Input validation error: ",
    "generation": "Request failed during generation: ",
    "template_error": "Template error: ",
    "tool_error": "Tool error: ",
}


class ErrorStyle(Enum):
    """Form of an error's body. All but NATIVE are values of --v1-errors and count on /v1 only."""

    NATIVE = "native"
    MIXED = "mixed"  # OpenAI's object with TGI's status and `error_type`
    OPENAI = "openai"  # the same with OpenAI's statuses
    TGI = "tgi"  # the native body; in a stream what TGI writes there


# `type` and `code` of OpenAI's object where the class says more than the status.
_OPENAI_CODES: dict[type[RequestError], tuple[str, str]] = {
    Unauthorized: ("authentication_error", "invalid_api_key"),
    OverBudget: ("invalid_request_error", "context_length_exceeded"),
    Overloaded: ("rate_limit_error", "rate_limit_exceeded"),
}
# These say no more than status and parameter do.
_NO_CODES = frozenset(
    {"validation", "unsupported_media_type", "invalid_json", "suffix not supported", "batch size exceeded"}
)
_OPENAI_STATUSES = {422: 400, 424: 500}


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


def error_status(error: RequestError, style: ErrorStyle) -> int:
    """HTTP status of an answer that is an error."""
    status = error_kind(error).status
    return _OPENAI_STATUSES.get(status, status) if style is ErrorStyle.OPENAI else status


def error_body(error: RequestError, style: ErrorStyle) -> bytes:
    """JSON of an answer that is an error."""
    if style in (ErrorStyle.NATIVE, ErrorStyle.TGI):
        return tgi_error_body(error)
    return _openai_error_body(error)


def error_event(error: RequestError, style: ErrorStyle) -> bytes:
    """An event that ends a stream."""
    if style is ErrorStyle.TGI:
        body = msgspec.json.encode({"error": {"message": str(error), "http_status_code": 422}})
    else:
        body = error_body(error, style)
    return b"data: " + body + b"\n\n"


def _openai_error_body(error: RequestError) -> bytes:
    kind = error_kind(error)
    general = "invalid_request_error" if kind.status < 500 and kind.status != 424 else "server_error"
    code: str | None
    error_type, code = _OPENAI_CODES.get(type(error), (general, kind.error_type))
    if code in _NO_CODES:
        code = None
    field = getattr(error, "field", "") or None
    body: dict[str, Any] = {
        "error": {"message": str(error), "type": error_type, "param": field, "code": code},
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
