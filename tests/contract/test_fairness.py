"""What callers get beside one another: equal tokens, priorities within bounds, answers on time or none at all."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

GREEDY, MODEST = "greedy-key", ("key-a", "key-b", "key-c")
GENERATE_BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "hi", "parameters": {"max_new_tokens": 2}},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
}


def write_keys(path: Path) -> None:
    """Write a file of keys whose names are the keys. `key-a` may ask for priorities from -5 on."""
    extra = {"key-a": "min_priority = -5\n", "key-b": "min_priority = 2\n"}
    lines = [f'[[key]]\nname = "{key}"\nkey = "{key}"\n{extra.get(key, "")}' for key in (GREEDY, *MODEST)]
    path.write_text("".join(lines))


def jain(values: list[float]) -> float:
    """Return Jain's index of fairness, (sum x)^2 / (n sum x^2)."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def test_equal_keys_get_equal_tokens_beside_200_waiting_requests_of_a_greedy_key(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=4, step_s=0.002)
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 12}}
    keys = (GREEDY, *MODEST)
    stop = threading.Event()

    def go_on(key: str) -> None:
        """Send one request after the other."""
        with httpx.Client(base_url=router.url, timeout=30, trust_env=False, headers={"x-api-key": key}) as client:
            while not stop.is_set():
                assert client.post("/generate", json=body).status_code == 200

    with RunningRouter(tmp_path, options, api_key=keys, max_concurrent_requests=1000) as router, ExitStack() as stack:
        router.shard.pause()
        for number in range(204):
            call = {"inputs": f"{number} hello", "parameters": {"max_new_tokens": 12}}
            stack.enter_context(router.send("/generate", call, {"x-api-key": GREEDY}))
        router.wait_until(lambda: router.stats().num_waiting >= 200, "200 requests of the greedy key wait")
        threads = [threading.Thread(target=go_on, args=(key,)) for key in MODEST for _ in range(4)]
        for thread in threads:
            thread.start()
        router.wait_until(lambda: router.stats().num_waiting >= 212, "the other keys wait too")
        engine = router.service.open_backend().engine
        before = engine.num_computed_by_caller()
        router.shard.resume()
        router.wait_until(lambda: sum(engine.num_computed_by_caller().values()) >= 3000, "3000 tokens are computed")
        after = router.in_loop(engine.num_computed_by_caller)
        num_waiting = router.in_loop(router.stats).num_waiting
        stop.set()
        for thread in threads:
            thread.join()
    assert num_waiting > 100  # the greedy key had requests in the queue all the time
    tokens = [float(after[name] - before.get(name, 0)) for name in sorted(after)]
    assert len(tokens) == 4
    assert jain(tokens) >= 0.95, after


def test_a_greedy_key_leaves_permits_for_keys_below_their_share(tmp_path: Path) -> None:
    settings = {"api_key": (GREEDY, *MODEST), "max_concurrent_requests": 8}
    with RunningRouter(tmp_path, FakeShardOptions(num_slots=1), **settings) as router, ExitStack() as stack:
        router.shard.pause()
        client = stack.enter_context(router.client())
        body = GENERATE_BODIES["/generate"]
        for number in range(6):
            stack.enter_context(router.send("/generate", body, {"x-api-key": GREEDY}))
            router.wait_until_counts(running=1, waiting=number)
        refused = client.post("/generate", json=body, headers={"x-api-key": GREEDY})
        assert refused.status_code == 429
        assert "6 of 8 sequences are in work, 6 of them for this API key" in refused.json()["error"]
        for number, key in enumerate(MODEST[:2], 6):
            stack.enter_context(router.send("/generate", body, {"x-api-key": key}))
            router.wait_until_counts(running=1, waiting=number)
        refused = client.post("/generate", json=body, headers={"x-api-key": MODEST[2]})
        assert "8 of 8 sequences are in work" in refused.json()["error"]
        router.shard.resume()
        stack.close()
        router.wait_until_free()


# ---- Priorities.


def test_a_better_priority_goes_first_whether_header_or_field_says_so(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(num_slots=1)) as router, ExitStack() as stack:
        router.shard.pause()
        asked: list[tuple[str, dict[str, Any], dict[str, str]]] = [
            ("first", {}, {}),
            ("late", {"priority": 10}, {}),
            ("plain", {}, {}),
            ("early", {"priority": -1}, {}),
            ("earliest", {"priority": 9}, {"x-priority": "-10"}),
        ]
        for number, (prompt, fields, headers) in enumerate(asked):
            call = {"prompt": prompt, "max_tokens": 1, **fields}
            stack.enter_context(router.send("/v1/completions", call, headers))
            router.wait_until_counts(running=1, waiting=number)
        call = {"inputs": "native", "parameters": {"max_new_tokens": 1, "priority": -5}}
        stack.enter_context(router.send("/generate", call))
        router.wait_until_counts(running=1, waiting=5)
        router.shard.resume()
        router.wait_until_free()
        assert router.shard.prompts == [b"first", b"earliest", b"native", b"early", b"plain", b"late"]


@pytest.mark.parametrize("route", GENERATE_BODIES)
def test_a_priority_out_of_range_or_beyond_the_key_is_refused_by_name(tmp_path: Path, route: str) -> None:
    write_keys(tmp_path / "keys.toml")
    body = GENERATE_BODIES[route]
    with RunningRouter(tmp_path, api_key_file=str(tmp_path / "keys.toml")) as router, router.client() as client:

        def answer(key: str, priority: int | str, *, in_header: bool) -> tuple[int, str]:
            headers, call = {"x-api-key": key}, dict(body)
            if in_header:
                headers["x-priority"] = str(priority)
            elif route == "/generate":
                call["parameters"] = {**body["parameters"], "priority": priority}
            else:
                call["priority"] = priority
            found = client.post(route, json=call, headers=headers)
            return found.status_code, found.text

        for in_header in (False, True):
            for key, priority, words in (
                ("key-a", -6, "must be -5 to 10 for this API key, found -6"),
                ("key-b", 1, "must be 2 to 10 for this API key, found 1"),
                ("key-c", -1, "must be 0 to 10 for this API key, found -1"),
                ("key-c", 11, "-10 to 10, found" if not in_header else "from -10 to 10, found"),
            ):
                status, text = answer(key, priority, in_header=in_header)
                assert (status, words in text) == (422, True), text
            for key, priority in (("key-a", -5), ("key-b", 2), ("key-c", 0), ("key-c", 10)):
                assert answer(key, priority, in_header=in_header)[0] == 200
        for word in ("high", "1.5", "", "9" * 30):
            status, text = answer("key-a", word, in_header=True)
            assert (status, "x-priority must be a whole number" in text) == (422, True)
        assert client.post(route, json=body, headers={"x-api-key": "key-b"}).status_code == 200


# ---- Deadlines.


@pytest.mark.parametrize("route", GENERATE_BODIES)
def test_a_request_that_waits_beyond_its_deadline_is_504_and_never_reaches_the_shard(
    tmp_path: Path, route: str
) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(num_slots=1)) as router, router.client() as client:
        router.shard.pause()
        with router.send("/generate", {"inputs": "holder", "parameters": {"max_new_tokens": 2}}):
            router.wait_until_counts(running=1, waiting=0)
            answer = client.post(route, json=GENERATE_BODIES[route], headers={"x-request-timeout-ms": "50"})
            assert answer.status_code == 504
            assert answer.json()["error_type"] == "timeout"
            assert "x-request-timeout-ms has passed before its first token" in answer.text
            router.wait_until_counts(running=1, waiting=0)
            router.shard.resume()
            router.wait_until_free()
        assert router.shard.prompts == [b"holder"]
        assert 'tgi_request_failure{err="timeout"} 1\n' in client.get("/metrics").text


def test_a_prompt_that_cannot_be_read_in_time_is_504_before_it_costs_a_prefill(tmp_path: Path) -> None:
    """The shard takes 0.1 s for 64 tokens, so 1,000 tokens take 1.6 s."""
    options = FakeShardOptions(num_slots=2, step_s=0.1, max_step_tokens=64)
    with RunningRouter(tmp_path, options) as router, router.client() as client:
        assert client.post("/generate", json={"inputs": "a" * 200, "parameters": {"max_new_tokens": 1}}).is_success
        num_admitted = len(router.shard.prompts)
        began_s = time.monotonic()
        answer = client.post(
            "/generate",
            json={"inputs": "b" * 1000, "parameters": {"max_new_tokens": 1}},
            headers={"x-request-timeout-ms": "800"},
        )
        assert answer.status_code == 504
        assert "the prompt takes longer to read" in answer.text
        assert time.monotonic() - began_s < 0.7  # long before the deadline
        assert len(router.shard.prompts) == num_admitted
        fitting = {"inputs": "c" * 100, "parameters": {"max_new_tokens": 1}}
        assert client.post("/generate", json=fitting, headers={"x-request-timeout-ms": "5000"}).status_code == 200


def test_a_stream_that_is_not_complete_by_its_deadline_ends_with_an_error(tmp_path: Path) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 500}}
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.02)) as router, router.client() as client:
        answer = client.post("/generate_stream", json=body, headers={"x-request-timeout-ms": "300"})
        assert answer.status_code == 200
        *_, last, _ = answer.text.split("\n\n")
        assert '"error_type":"timeout"' in last
        whole = client.post("/generate", json=body, headers={"x-request-timeout-ms": "300"})
        assert whole.status_code == 504
        router.wait_until_free()
        assert client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 2}}).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "86400001", ""])
def test_a_timeout_that_is_no_number_of_milliseconds_is_422(client: httpx.Client, value: str) -> None:
    answer = client.post("/generate", json=GENERATE_BODIES["/generate"], headers={"x-request-timeout-ms": value})
    assert answer.status_code == 422
    assert "x-request-timeout-ms must be a whole number from 1 to 86400000" in answer.json()["error"]


# ---- Clients that leave.


@pytest.mark.parametrize("route", GENERATE_BODIES)
def test_a_queued_request_whose_client_has_left_never_reaches_the_shard(tmp_path: Path, route: str) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(num_slots=1)) as router:
        router.shard.pause()
        with router.send("/generate", {"inputs": "holder", "parameters": {"max_new_tokens": 2}}):
            router.wait_until_counts(running=1, waiting=0)
            for is_stream in (False, True):
                leaving = router.send(route, {**GENERATE_BODIES[route], "stream": is_stream})
                router.wait_until_counts(running=1, waiting=1)
                leaving.close()
                router.wait_until_counts(running=1, waiting=0)
            router.shard.resume()
            router.wait_until_free()
        assert router.shard.prompts == [b"holder"]
