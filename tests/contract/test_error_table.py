"""Every status and `error_type` of TGI's dialect in one table, streamed or not, with JSON body and headers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.running_router import RunningRouter

BODY: dict[str, Any] = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
# Each form has a route and fields of the body.
FORMS = [
    pytest.param("/generate", {}, id="whole"),
    pytest.param("/generate_stream", {}, id="stream"),
    pytest.param("/", {"stream": False}, id="compat-whole"),
    pytest.param("/", {"stream": True}, id="compat-stream"),
]
Fault = Callable[[RunningRouter], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One error: the fault before the call, the changes to the call, and the answer."""

    status: int
    error_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    method: str = "POST"
    before: Fault = lambda router: None
    reply_headers: tuple[str, ...] = ()


def take_all_permits(router: RunningRouter) -> None:
    router.shard.pause()
    router.holders.append(router.send("/generate", BODY))
    router.wait_until(lambda: router.service.permits.held == 1, "the permit is taken")


def lose_the_shard_when_full(router: RunningRouter) -> None:
    take_all_permits(router)
    router.shard.load("weights", 0.5)
    router.shard.cut()
    router.wait_until(lambda: router.service.phase == "lost", "the shard is away")


def fail_soon(router: RunningRouter) -> None:
    """Let the first request fail, which gets slot 0."""
    router.shard.fail_slot(0)


JSON = {"content-type": "application/json"}
ROWS = [
    Row(400, "invalid_json", content=b'{"inputs": ', headers=JSON),
    Row(401, "unauthorized", settings={"api_key": ("k",)}, reply_headers=("www-authenticate",)),
    Row(401, "unauthorized", settings={"api_key": ("k",)}, headers={"authorization": "Bearer K"}),
    Row(404, "not_found", path="/nothing"),
    Row(405, "method_not_allowed", method="PUT", reply_headers=("allow",)),
    Row(413, "payload_too_large", settings={"payload_limit": 20}),
    # POST / takes a body of any content type, as test_writing_tasks.py says.
    Row(
        *(415, "unsupported_media_type"),
        content=b'{"inputs": "hi"}',
        headers={"content-type": "text/plain"},
        path="/generate",
    ),
    Row(422, "validation", body={"inputs": 5}),
    Row(422, "validation", body={"inputs": ""}),
    Row(422, "validation", body={"parameters": {"temperature": -1}}),
    Row(422, "validation", body={"inputs": "x" * 3000}, settings={"max_total_tokens": 100}),
    Row(424, "generation", before=fail_soon),
    Row(
        429,
        "overloaded",
        settings={"max_concurrent_requests": 1},
        before=take_all_permits,
        reply_headers=("retry-after",),
    ),
    Row(500, "internal", before=lambda router: router.shard.reject_next_admission()),
    Row(503, "loading", settings={"is_loading": True}, reply_headers=("retry-after",)),
    Row(
        503,
        "recovering",
        settings={"max_concurrent_requests": 1},
        before=lose_the_shard_when_full,
        reply_headers=("retry-after",),
    ),
    Row(
        503,
        "shutting_down",
        before=lambda router: router.in_loop(router.service.permits.close),
        reply_headers=("retry-after", "connection"),
    ),
]


@contextmanager
def running(folder: Path, row: Row) -> Iterator[tuple[RunningRouter, httpx.Client]]:
    with RunningRouter(folder, **row.settings) as router, router.client() as client:
        yield router, client
        router.shard.resume()
        for holder in router.holders:
            holder.close()


@pytest.mark.parametrize(("route", "more"), FORMS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.status}-{row.error_type}")
def test_error_has_its_status_type_and_a_json_body(tmp_path: Path, row: Row, route: str, more: dict[str, Any]) -> None:
    with running(tmp_path, row) as (router, client):
        row.before(router)
        sent: dict[str, Any] = (
            {"json": {**BODY, **more, **row.body}} if row.content is None else {"content": row.content}
        )
        answer = client.request(row.method, row.path or route, headers=row.headers, **sent)
        assert answer.status_code == row.status, answer.text
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body["error_type"] == row.error_type
        assert isinstance(body["error"], str)
        assert body["error"]
        extra = {"phase", "estimated_time"} if row.error_type == "loading" else set()
        assert set(body) == {"error", "error_type"} | extra
        for name in row.reply_headers:
            assert name in answer.headers
        if "retry-after" in row.reply_headers:
            assert int(answer.headers["retry-after"]) >= 1
        assert "x-request-id" in answer.headers
        if row.status == 422:
            assert body["error"].startswith("Input validation error: ")
        if row.status == 424:
            assert body["error"].startswith("Request failed during generation: ")


def test_table_has_every_status_of_the_contract() -> None:
    assert {row.status for row in ROWS} == {400, 401, 404, 405, 413, 415, 422, 424, 429, 500, 503}
