"""Failures after admission as their clients see them."""

import json

import pytest
from textmill_router.api.error_responses import error_headers, error_kind, generation_error, native_error_body
from textmill_router.request import Failure, FailureCode

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
    assert json.loads(native_error_body(error))["error"].endswith("because")
    assert (b"retry-after" in dict(error_headers(error))) == (kind.status == 503)
