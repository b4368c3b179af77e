"""Requests made from /openapi.json get no 5xx, and only answers that the document describes.

Each run makes the same requests.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from jsonschema import Draft202012Validator
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from textmill_router.api.route_table import openapi_document

from tests.fakes.running_router import RunningRouter

MAX_EXAMPLES = 15
DOCUMENT = openapi_document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SERVED = {"model": "fake/model", "version": "1"}
NUMBERS = count()
STATUSES: Counter[tuple[str, int]] = Counter()
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RunningRouter(tmp_path_factory.mktemp("schemathesis"), max_total_tokens=64, max_input_tokens=60) as router:
        yield router.url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A session that keeps its connection, because the routes with many fields get a thousand calls each."""
    with requests.Session() as kept:
        kept.trust_env = False
        yield kept


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=MAX_EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_answers_are_those_of_the_document(case: Case, url: str, session: requests.Session) -> None:
    if case.path.startswith("/v2/") and next(NUMBERS) % 2:  # no generated word is the name of the model
        case.path_parameters.update({name: SERVED[name] for name in case.path_parameters})
    answer = case.call(base_url=url, session=session, timeout=20)
    STATUSES[case.operation.path, answer.status_code] += 1
    is_stream = answer.headers.get("content-type", [""])[0].startswith("text/event-stream")
    checks = CHECKS if is_stream else [*CHECKS, response_schema_conformance]
    case.validate_response(answer, checks=checks)
    if is_stream:
        content = case.operation.definition.raw["responses"]["200"]["content"]["text/event-stream"]
        assert_events(content["schema"], answer.content)


def assert_events(schema: dict[str, Any], data: bytes) -> None:
    """Check that each event is one line of JSON that fits the schema, and that `[DONE]` ends a stream of /v1."""
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    lines = [line.removeprefix(b"data: ") for line in data.split(b"\n\n")[:-1]]
    assert lines
    for line in lines:
        if line != b"[DONE]":
            validator.validate(json.loads(line))


def test_every_route_was_also_asked_well() -> None:
    assert {path for path, status in STATUSES if status == 200} == set(DOCUMENT["paths"])
    assert sum(STATUSES.values()) > 100
