"""A server with too much to do: each bound is told with its value, before tokenising, and what never fits is a 422."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

ONE_SLOT = FakeShardOptions(num_slots=1)
ROUTES = {
    "/generate": lambda text: {"inputs": text},
    "/generate_stream": lambda text: {"inputs": text},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
}


@contextmanager
def full_router(folder: Path, num_waiting: int, text: str = "hi", **settings: Any) -> Iterator[RunningRouter]:
    """Run a router whose shard stands still with one running request, behind which others wait."""
    with RunningRouter(folder, ONE_SLOT, **settings) as router:
        router.shard.pause()
        holders = []
        try:
            for number in range(num_waiting + 1):
                holders.append(router.send("/generate", {"inputs": text}))
                router.wait_until_counts(running=1, waiting=number)
            yield router
        finally:
            for holder in holders:
                holder.close()
            router.shard.resume()
            router.wait_until_free()


def refusal(client: httpx.Client, route: str, text: str = "hi") -> str:
    """Return the words of a 429, whose Retry-After is a whole number of seconds."""
    answer = client.post(route, json=ROUTES[route](text))
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize(
    ("settings", "num_waiting", "words", "flag"),
    [
        ({"max_concurrent_requests": 2}, 1, "2 of 2 sequences are in work", "--max-concurrent-requests"),
        ({"max_queued_requests": 2}, 2, "2 requests wait, at most 2 may", "--max-queued-requests"),
        ({"max_queued_tokens": 6}, 2, "requests of 6 tokens wait, at most 6 tokens may", "--max-queued-tokens"),
    ],
)
def test_each_bound_is_told_with_its_value_before_tokenising(
    tmp_path: Path, settings: dict[str, Any], num_waiting: int, words: str, flag: str
) -> None:
    """A prompt that is too long is a 422 once it is tokenised, and so a 429 for the prompt came before."""
    too_long = "x" * 200
    limits = {"max_total_tokens": 120, "max_input_tokens": 100}
    with full_router(tmp_path, num_waiting, **limits, **settings) as router, router.client() as client:
        for route in ROUTES:
            for text in ("hi", too_long):
                told = refusal(client, route, text)
                assert words in told
                assert flag in told
        # Parameters are checked before, because their check costs microseconds.
        bad = {"inputs": "hi", "parameters": {"max_new_tokens": 0}}
        assert client.post("/generate", json=bad).status_code == 422
    with RunningRouter(tmp_path / "idle", **limits, **settings) as router, router.client() as client:
        for route, body_of in ROUTES.items():
            assert client.post(route, json=body_of(too_long)).status_code == 422


def test_a_predicted_wait_over_the_bound_is_refused_until_the_queue_is_shorter(tmp_path: Path) -> None:
    """Each step takes 30 ms, so a request of 10 tokens holds the only slot for 0.3 s."""
    options = FakeShardOptions(num_slots=1, step_s=0.03)
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 10}}
    with RunningRouter(tmp_path, options, max_queue_seconds=1.0) as router, router.client() as client:
        with ExitStack() as holders:
            sent = [holders.enter_context(router.send("/generate", body)) for _ in range(12)]
            engine = router.service.open_backend().engine
            scheduler = engine.replicas[0].scheduler
            assert scheduler is not None

            def predicted_s() -> float:
                return scheduler.predicted_wait_s(engine.now()) or 0.0

            router.wait_until(lambda: predicted_s() > 1.5, "a wait is predicted")
            told = refusal(client, "/generate")
            assert "the wait would be about" in told
            assert "at most 1 s (--max-queue-seconds)" in told
            router.wait_until(lambda: 0 < predicted_s() < 0.9, "the queue is shorter")
            assert client.post("/generate", json=body).status_code == 200
            assert [holder.recv(15) for holder in sent] == [b"HTTP/1.1 200 OK"] * 12
        router.wait_until_free()


@pytest.mark.parametrize(
    ("settings", "route", "body", "words"),
    [
        ({"max_concurrent_requests": 3}, "/v1/completions", {"prompt": "a", "n": 4}, "4 sequences at once"),
        ({"max_concurrent_requests": 4, "api_key": ("k", "other")}, "/v1/completions", {"prompt": "a", "n": 4}, "is 3"),
        ({"max_queued_requests": 3}, "/v1/completions", {"prompt": ["a", "b"], "n": 2}, "--max-queued-requests"),
        ({"max_queued_tokens": 9}, "/v1/completions", {"prompt": "abcde", "n": 2}, "have 12 tokens together"),
        ({"max_queued_tokens": 9}, "/generate", {"inputs": ["abcde", "abcde"]}, "--max-queued-tokens"),
    ],
)
def test_what_can_never_fit_is_422_and_what_fits_an_idle_server_is_served(
    tmp_path: Path, settings: dict[str, Any], route: str, body: dict[str, Any], words: str
) -> None:
    key = {"x-api-key": "k"}
    with RunningRouter(tmp_path, ONE_SLOT, **settings) as router, router.client(headers=key) as client:
        answer = client.post(route, json=body)
        assert answer.status_code == 422, answer.text
        assert words in answer.text
        if "prompt" in body:
            fitting: dict[str, Any] = {"prompt": "abcdefghijk", "max_tokens": 2}
        else:
            fitting = {"inputs": "abcdefghijk", "parameters": {"max_new_tokens": 2}}
        assert client.post(route, json=fitting).status_code == 200
        router.wait_until_free()
