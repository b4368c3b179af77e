"""Each call that generates has one line in the log at its end, whatever its end, and no line has a prompt."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

SECRET = "the-prompt-of-nobody"
ENDS = ("Success", "Refused", "Broken off", "Dropped")


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RunningRouter]:
    with RunningRouter(tmp_path, FakeShardOptions(), response_cache_bytes=100_000, max_best_of=2) as running:
        yield running


@pytest.fixture
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "textmill_router")
    return caplog


def ends(lines: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [{**vars(record)} for record in lines.records if record.getMessage() in ENDS]


def body(**parameters: Any) -> dict[str, Any]:
    return {"inputs": SECRET, "parameters": {"max_new_tokens": 3, **parameters}}


def test_answer_has_one_line_with_its_tokens_and_times(client: httpx.Client, lines: pytest.LogCaptureFixture) -> None:
    answer = client.post("/generate", json=body(), headers={"x-request-id": "mine"})
    [line] = ends(lines)
    assert (line["msg"], line["request"], line["route"], line["status"]) == ("Success", "mine", "/generate", 200)
    counts = (line["num_prompt_tokens"], line["num_cached_tokens"], line["num_output_tokens"])
    assert counts == (1 + len(SECRET), 0, 3)  # a byte is a token, after the begin token
    assert line["finish_reason"] == "length"
    parts = line["queue_ms"] + line["prefill_ms"] + line["decode_ms"]
    assert 0 < parts <= line["total_ms"] + 0.5
    assert answer.headers["x-generated-tokens"] == "3"


@pytest.mark.parametrize(
    ("route", "content", "status", "error_type"),
    [
        ("/generate", body(top_k=0), 422, "validation"),
        ("/generate", body(best_of=9), 422, "validation"),
        ("/v1/completions", {"prompt": SECRET, "max_tokens": -1}, 422, "validation"),
        ("/v1/completions", {"prompt": SECRET * 5000}, 422, "validation"),
    ],
)
def test_refusal_has_one_line_with_its_status(
    route: str, content: Any, status: int, error_type: str, client: httpx.Client, lines: pytest.LogCaptureFixture
) -> None:
    answer = client.post(route, json=content)
    [line] = ends(lines)
    assert (line["msg"], line["route"], line["status"]) == ("Refused", route, answer.status_code)
    assert line["error_type"] == error_type
    assert answer.status_code == status


def test_kept_answer_has_a_line_too(client: httpx.Client, lines: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        client.post("/generate", json=body())
    first, second = ends(lines)
    assert "is_kept" not in first
    assert (second["msg"], second["is_kept"], second["num_output_tokens"]) == ("Success", True, 3)


def test_client_that_leaves_has_a_line_too(router: RunningRouter, lines: pytest.LogCaptureFixture) -> None:
    router.shard.pause()
    holder: socket.socket = router.send("/generate", body())
    router.wait_until_counts(running=1, waiting=0)
    holder.close()
    router.wait_until(lambda: len(ends(lines)) == 1, "the call has ended")
    assert ends(lines)[0]["msg"] == "Dropped"
    router.shard.resume()
    router.wait_until_free()


def test_stream_that_fails_behind_its_first_token_is_no_refusal(
    router: RunningRouter, client: httpx.Client, lines: pytest.LogCaptureFixture
) -> None:
    with client.stream("POST", "/generate_stream", json=body(max_new_tokens=4000)) as answer:
        events = answer.iter_lines()
        next(events)
        router.shard.fail_slot(0)
        assert any("error" in event for event in events)
    [line] = ends(lines)
    assert (line["msg"], line["error_type"]) == ("Broken off", "generation")


def test_no_line_has_the_prompt(client: httpx.Client, lines: pytest.LogCaptureFixture) -> None:
    client.post("/generate", json=body())
    client.post("/generate", json=body(stop=[SECRET], top_k=0))
    client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": SECRET}], "n": 0})
    assert len(ends(lines)) == 3
    assert SECRET not in "".join(str(vars(record)) for record in lines.records)
