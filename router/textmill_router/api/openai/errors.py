"""Errors as /v1 shows them: OpenAI's object with TGI's statuses or with OpenAI's, or TGI's body."""

from typing import Any

import msgspec

from textmill_router.errors import ImageRefused, ModelLoading, OverBudget, Overloaded, RequestError, Unauthorized
from textmill_router.http.error_responses import TGI_ERRORS, ErrorStyle, error_event, error_kind

# `type` and `code` of OpenAI's object, for classes that say more than their status.
_CODES: dict[type[RequestError], tuple[str, str]] = {
    Unauthorized: ("authentication_error", "invalid_api_key"),
    OverBudget: ("invalid_request_error", "context_length_exceeded"),
    Overloaded: ("rate_limit_error", "rate_limit_exceeded"),
}
# Kinds of errors that have no code, because the code would say no more than status and parameter.
_NO_CODES = frozenset(
    {"validation", "unsupported_media_type", "invalid_json", "suffix not supported", "batch size exceeded"}
)
_STATUSES = {422: 400, 424: 500}


def openai_error_body(error: RequestError) -> bytes:
    """Return `{"error": {"message", "type", "param", "code"}, "error_type"}` as JSON, with the phase while loading."""
    kind = error_kind(error)
    general = "invalid_request_error" if kind.status < 500 and kind.status != 424 else "server_error"
    code: str | None
    error_type, code = _CODES.get(type(error), (general, kind.error_type))
    if code in _NO_CODES:
        code = None
    if isinstance(error, ImageRefused):
        code = error.code.value
    field = getattr(error, "field", "") or None
    body: dict[str, Any] = {
        "error": {"message": str(error), "type": error_type, "param": field, "code": code},
        "error_type": kind.error_type,
    }
    if isinstance(error, ModelLoading):
        body["phase"] = error.phase
        body["estimated_time"] = error.estimated_s
    return msgspec.json.encode(body)


def openai_status(error: RequestError) -> int:
    """Return the HTTP status that OpenAI gives the error."""
    status = error_kind(error).status
    return _STATUSES.get(status, status)


def _openai_event(error: RequestError) -> bytes:
    return error_event(openai_error_body(error))


def _tgi_chat_event(error: RequestError) -> bytes:
    """Return TGI's event of an error, which says 422 in every stream of /v1, whatever went wrong."""
    return error_event(msgspec.json.encode({"error": {"message": str(error), "http_status_code": 422}}))


# The values of --v1-errors.
V1_ERROR_STYLES = {
    "mixed": ErrorStyle(TGI_ERRORS.status_of, openai_error_body, _openai_event),
    "openai": ErrorStyle(openai_status, openai_error_body, _openai_event),
    "tgi": ErrorStyle(TGI_ERRORS.status_of, TGI_ERRORS.body_of, _tgi_chat_event),
}
