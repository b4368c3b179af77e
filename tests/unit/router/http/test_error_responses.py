"""Errors as their clients see them: failures after admission, and the three styles of /v1."""

import json

import pytest
from textmill_router import errors
from textmill_router.http.error_responses import (
    ErrorStyle,
    error_body,
    error_event,
    error_headers,
    error_kind,
    error_status,
    tgi_error_body,
)
from textmill_router.request import Failure, FailureCode
from textmill_router.serving.failures import generation_error

STATUSES = {
    FailureCode.NOT_FINITE: (424, "generation"),
    FailureCode.INTERNAL: (424, "generation"),
    FailureCode.SUSPECT: (424, "generation"),
    FailureCode.PLAN_REJECTED: (500, "internal"),
    FailureCode.SHUTDOWN: (503, "shutting_down"),
}


@pytest.mark.parametrize("code", FailureCode)
def test_each_failure_has_its_status_and_keeps_its_message(code: FailureCode) -> None:
    error = generation_error(Failure(code, "because"))
    kind = error_kind(error)
    assert (kind.status, kind.error_type) == STATUSES[code]
    assert json.loads(tgi_error_body(error))["error"].endswith("because")
    assert (b"retry-after" in dict(error_headers(error))) == (kind.status == 503)


TOO_LONG = errors.OverBudget("m", field="max_tokens", max_tokens=1, window_tokens=2, found="3")
LOADING = errors.ModelLoading("m", phase="weights", estimated_s=2.5, retry_after_s=3)
# Of each error: TGI's status and `error_type`; OpenAI's status, type, code and param.
STYLES: list[tuple[errors.RequestError, int, str, int, str, str | None, str | None]] = [
    (errors.InvalidJson("m"), 400, "invalid_json", 400, "invalid_request_error", None, None),
    (errors.Unauthorized("m"), 401, "unauthorized", 401, "authentication_error", "invalid_api_key", None),
    (errors.ModelNotFound("m"), 404, "model_not_found", 404, "invalid_request_error", "model_not_found", None),
    (errors.RouteNotFound("m"), 404, "not_found", 404, "invalid_request_error", "not_found", None),
    (errors.UnsupportedMediaType("m"), 415, "unsupported_media_type", 415, "invalid_request_error", None, None),
    (errors.ValidationFailed("m", field="n"), 422, "validation", 400, "invalid_request_error", None, "n"),
    (errors.ValidationFailed("m"), 422, "validation", 400, "invalid_request_error", None, None),
    (TOO_LONG, 422, "validation", 400, "invalid_request_error", "context_length_exceeded", "max_tokens"),
    (errors.TemplateFailed("m"), 422, "template_error", 400, "invalid_request_error", "template_error", None),
    (errors.ToolError("m"), 422, "tool_error", 400, "invalid_request_error", "tool_error", "tools"),
    (errors.GenerationBroke("m"), 424, "generation", 500, "server_error", "generation", None),
    (errors.Overloaded("m", retry_after_s=1), 429, "overloaded", 429, "rate_limit_error", "rate_limit_exceeded", None),
    (errors.InternalError("m"), 500, "internal", 500, "server_error", "internal", None),
    (LOADING, 503, "loading", 503, "server_error", "loading", None),
]


@pytest.mark.parametrize(
    ("error", "status", "error_type", "openai_status", "kind", "code", "param"), STYLES, ids=lambda value: str(value)
)
def test_each_error_has_its_form_in_each_style(
    error: errors.RequestError,
    status: int,
    error_type: str,
    openai_status: int,
    kind: str,
    code: str | None,
    param: str | None,
) -> None:
    more = {"phase": "weights", "estimated_time": 2.5} if error is LOADING else {}
    for style, its_status in ((ErrorStyle.MIXED, status), (ErrorStyle.OPENAI, openai_status)):
        wanted = {"error": {"message": "m", "type": kind, "param": param, "code": code}, "error_type": error_type}
        assert error_status(error, style) == its_status
        assert json.loads(error_body(error, style)) == wanted | more
        assert error_event(error, style) == b"data: " + error_body(error, style) + b"\n\n"
    assert error_status(error, ErrorStyle.TGI) == error_status(error, ErrorStyle.NATIVE) == status
    body = error_body(error, ErrorStyle.TGI)
    assert body == error_body(error, ErrorStyle.NATIVE)
    assert set(json.loads(body)) == {"error", "error_type", *more}
    assert json.loads(body)["error_type"] == error_type
    # TGI writes 422 into every stream, whatever went wrong.
    event = json.loads(error_event(error, ErrorStyle.TGI).removeprefix(b"data: "))
    assert event == {"error": {"message": "m", "http_status_code": 422}}
