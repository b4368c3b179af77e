"""Failures after admission, as clients of TGI see them."""

import json

import pytest
from textmill_router.http.error_responses import error_headers, error_kind, tgi_error_body
from textmill_router.request import Failure, FailureCode
from textmill_router.serving.failures import generation_error

STATUSES = {
    FailureCode.NOT_FINITE: (424, "generation"),
    FailureCode.INTERNAL: (424, "generation"),
    FailureCode.SUSPECT: (424, "generation"),
    FailureCode.ADAPTER_LOST: (424, "generation"),
    FailureCode.MEDIA: (424, "generation"),
    FailureCode.PLAN_REJECTED: (500, "internal"),
    FailureCode.LATE: (504, "timeout"),
    FailureCode.SHUTDOWN: (503, "shutting_down"),
}


@pytest.mark.parametrize("code", FailureCode)
def test_each_failure_has_its_status_and_keeps_its_message(code: FailureCode) -> None:
    error = generation_error(Failure(code, "because"))
    kind = error_kind(error)
    assert (kind.status, kind.error_type) == STATUSES[code]
    assert json.loads(tgi_error_body(error))["error"].endswith("because")
    assert (b"retry-after" in dict(error_headers(error))) == (kind.status == 503)
