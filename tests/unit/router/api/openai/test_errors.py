"""Errors as clients of /v1 see them, in each of the three styles."""

import json

import pytest
from textmill_router import errors
from textmill_router.api.openai.errors import V1_ERROR_STYLES
from textmill_router.http.error_responses import TGI_ERRORS

TOO_LONG = errors.OverBudget("m", field="max_tokens", max_tokens=1, window_tokens=2, found="3")
BAD_IMAGE = errors.ImageRefused("m", field="messages[0].content[1].image_url", code=errors.ImageCode.TOO_LARGE)
LOADING = errors.ModelLoading("m", phase="weights", estimated_s=2.5, retry_after_s=3)
# Each row has an error, TGI's status and `error_type`, and OpenAI's status, type, code and param.
STYLES: list[tuple[errors.RequestError, int, str, int, str, str | None, str | None]] = [
    (errors.InvalidJson("m"), 400, "invalid_json", 400, "invalid_request_error", None, None),
    (errors.Unauthorized("m"), 401, "unauthorized", 401, "authentication_error", "invalid_api_key", None),
    (errors.ModelNotFound("m"), 404, "model_not_found", 404, "invalid_request_error", "model_not_found", None),
    (errors.RouteNotFound("m"), 404, "not_found", 404, "invalid_request_error", "not_found", None),
    (errors.UnsupportedMediaType("m"), 415, "unsupported_media_type", 415, "invalid_request_error", None, None),
    (errors.ValidationFailed("m", field="n"), 422, "validation", 400, "invalid_request_error", None, "n"),
    (errors.ValidationFailed("m"), 422, "validation", 400, "invalid_request_error", None, None),
    (BAD_IMAGE, 422, "validation", 400, "invalid_request_error", "image_too_large", "messages[0].content[1].image_url"),
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
    for name, its_status in (("mixed", status), ("openai", openai_status)):
        style = V1_ERROR_STYLES[name]
        wanted = {"error": {"message": "m", "type": kind, "param": param, "code": code}, "error_type": error_type}
        assert style.status_of(error) == its_status
        assert json.loads(style.body_of(error)) == wanted | more
        assert style.event_of(error) == b"data: " + style.body_of(error) + b"\n\n"
    tgi = V1_ERROR_STYLES["tgi"]
    assert tgi.status_of(error) == TGI_ERRORS.status_of(error) == status
    body = tgi.body_of(error)
    assert body == TGI_ERRORS.body_of(error)
    assert TGI_ERRORS.event_of(error) == b"data: " + body + b"\n\n"
    assert set(json.loads(body)) == {"error", "error_type", *more}
    assert json.loads(body)["error_type"] == error_type
    # TGI writes 422 into every stream, whatever the error is.
    event = json.loads(tgi.event_of(error).removeprefix(b"data: "))
    assert event == {"error": {"message": "m", "http_status_code": 422}}
