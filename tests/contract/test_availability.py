"""Loading, overload, a shard that fails, and a server that stops: the statuses 424, 429, 500 and 503."""

import asyncio
import json
from pathlib import Path

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import WAIT_TIMEOUT_S, RunningRouter

BODY = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
GENERATE_ROUTES = ("/generate", "/generate_stream", "/")


def test_loading_is_503_with_phase_until_the_shard_is_ready(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        router.wait_until(lambda: router.service.phase == "weights", "the shard's phase is known")
        for route in GENERATE_ROUTES:
            answer = client.post(route, json=BODY)
            assert answer.status_code == 503
            body = answer.json()
            assert set(body) == {"error", "error_type", "phase", "estimated_time"}
            assert (body["error_type"], body["phase"]) == ("loading", "weights")
            assert body["estimated_time"] > 0
            # Header and body are in seconds, the header in whole seconds.
            assert abs(int(answer.headers["retry-after"]) - body["estimated_time"]) <= 1
        for path in ("/", "/health", "/ping"):
            answer = client.get(path)
            assert answer.status_code == 503
            body = answer.json()
            assert (body["error"], body["error_type"], body["phase"]) == ("unhealthy", "healthcheck", "weights")
        assert client.get("/info").status_code == 503
        assert client.get("/metrics").status_code == 200
        assert client.get("/nope").status_code == 404
        router.shard.load("warmup", 0.9)
        router.wait_until(lambda: router.service.phase == "warmup", "the next phase is known")
        assert client.get("/health").json()["phase"] == "warmup"
        router.shard.load(None)
        router.wait_until_healthy()
        for path in ("/", "/health", "/ping"):
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert client.post("/generate", json=BODY).json() == {"generated_text": "abc"}


def test_no_permit_is_429_but_bad_parameters_are_told_first(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=2) as router, router.client() as client:
        router.shard.pause()
        holder = router.send("/generate", {**BODY, "parameters": {"do_sample": True, "best_of": 2}})
        router.wait_until(lambda: router.service.permits.held == 2, "best_of holds two permits")
        for route in GENERATE_ROUTES:
            answer = client.post(route, json={**BODY, "stream": True})
            assert answer.status_code == 429
            assert answer.json()["error_type"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
            for words in ("2 of 2 sequences", "--max-concurrent-requests", f"in {answer.headers['retry-after']} s"):
                assert words in answer.json()["error"]
            assert client.post(route, json={"inputs": "hi", "parameters": {"top_k": 0}}).status_code == 422
            # A request without a permit is not tokenised, so its length is not found out.
            assert client.post(route, json={"inputs": "x" * 100_000}).status_code == 429
        assert client.get("/health").status_code == 200
        assert 'tgi_request_failure{err="overloaded"} 6\n' in client.get("/metrics").text
        router.shard.resume()
        holder.close()
        router.wait_until_free()
        assert client.post("/generate", json=BODY).status_code == 200


def test_full_queue_is_429(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=1)
    with RunningRouter(tmp_path, options, max_queued_requests=1) as router, router.client() as client:
        router.shard.pause()
        holders = [router.send("/generate", BODY)]
        router.wait_until_counts(running=1, waiting=0)
        holders.append(router.send("/generate", BODY))
        router.wait_until_counts(running=1, waiting=1)
        for route in GENERATE_ROUTES:
            answer = client.post(route, json={**BODY, "stream": True})
            assert answer.status_code == 429
            assert answer.json()["error_type"] == "overloaded"
            wait_s = answer.headers["retry-after"]
            told = f"1 requests wait, at most 1 may (--max-queued-requests); try again in {wait_s} s"
            assert answer.json()["error"] == f"Model is overloaded: {told}"
        router.shard.resume()
        for holder in holders:
            assert holder.recv(15) == b"HTTP/1.1 200 OK"
            holder.close()
        router.wait_until_free()


def test_failed_slot_is_424_before_the_first_event_and_an_event_after_it(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router, router.client() as client:
        router.shard.pause()
        waiting = router.send("/generate_stream", BODY)
        router.wait_until_counts(running=1, waiting=0)
        router.shard.fail_slot(0)
        router.shard.resume()
        head, _, data = waiting.recv(4096).partition(b"\r\n\r\n")
        waiting.close()
        assert head.startswith(b"HTTP/1.1 424 ")
        error = json.loads(data)
        assert error["error_type"] == "generation"
        assert error["error"].startswith("Request failed during generation: ")

        with client.stream("POST", "/generate_stream", json={"inputs": "hi"}) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["index"] == 1
            router.shard.fail_slot(0)
            last = [line for line in lines if line][-1]
        body = json.loads(last.removeprefix("data: "))
        assert set(body) == {"error", "error_type"}
        assert body["error_type"] == "generation"
        assert 'tgi_request_failure{err="generation"} 2\n' in client.get("/metrics").text


def test_lost_shard_is_unhealthy_but_requests_are_held(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.002)) as router, router.client() as client:
        with client.stream(
            "POST", "/generate_stream", json={"inputs": "hi", "parameters": {"max_new_tokens": 60}}
        ) as s:
            lines = s.iter_lines()
            first = next(lines)
            router.shard.cut()
            events = [json.loads(line.removeprefix("data: ")) for line in [first, *lines] if line]
        assert [event["index"] for event in events] == list(range(1, 61))
        assert events[-1]["generated_text"] == ("abcdefghijklmnopqrstuvwxyz" * 3)[:60]
        router.wait_until_healthy()


def test_leaving_server_takes_nothing_new_and_says_so(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.002)) as router, router.client() as client:
        with client.stream(
            "POST", "/generate_stream", json={"inputs": "hi", "parameters": {"max_new_tokens": 80}}
        ) as s:
            lines = s.iter_lines()
            next(lines)
            router.in_loop(router.service.permits.close)
            with router.client() as other:
                answer = other.post("/generate", json=BODY)
                assert answer.status_code == 503
                assert answer.json()["error_type"] == "shutting_down"
                assert answer.headers["connection"] == "close"
                assert other.get("/health").json()["phase"] == "draining"
            assert json.loads([line for line in lines if line][-1].removeprefix("data: "))["index"] == 80
        idle = asyncio.run_coroutine_threadsafe(router.service.permits.wait_idle(), router.loop)
        idle.result(WAIT_TIMEOUT_S)
