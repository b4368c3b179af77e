"""Features beyond TGI: calls of several prompts or sequences, `max_time`, the wait for the model, kept answers."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

BODY = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}


def post(
    client: httpx.Client, route: str, inputs: Any, headers: dict[str, str] | None = None, **parameters: Any
) -> Any:
    parameters = {"max_new_tokens": 2, **parameters}
    answer = client.post(route, json={"inputs": inputs, "parameters": parameters}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- Several results.


def test_list_of_inputs_gives_a_flat_list(client: httpx.Client) -> None:
    texts = [{"generated_text": "xab"}, {"generated_text": "yab"}]
    assert post(client, "/generate", ["x", "y"], return_full_text=True) == texts
    assert post(client, "/", ["x", "y"]) == texts
    assert post(client, "/generate", ["x"], return_full_text=True) == texts[:1]


def test_sequences_stand_input_by_input(client: httpx.Client) -> None:
    answers = post(client, "/generate", ["x", "y"], num_return_sequences=2, return_full_text=True, details=True)
    assert [answer["generated_text"] for answer in answers] == ["xab", "xab", "yab", "yab"]
    assert all("best_of_sequences" not in answer["details"] for answer in answers)
    assert len(post(client, "/", "x", num_return_sequences=3)) == 3
    assert post(client, "/generate", "x", num_return_sequences=1) == {"generated_text": "ab"}


def test_sequences_have_seeds_of_their_own(client: httpx.Client) -> None:
    answers = post(client, "/generate", ["x", "y"], num_return_sequences=3, do_sample=True, seed=7, details=True)
    assert [answer["details"]["seed"] for answer in answers] == [7, 8, 9, 7, 8, 9]
    drawn = post(client, "/generate", "x", num_return_sequences=2, do_sample=True, details=True)
    assert drawn[0]["details"]["seed"] != drawn[1]["details"]["seed"]


def test_headers_of_several_results_are_sums(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": ["x", "yyy"], "parameters": {"max_new_tokens": 2}})
    assert answer.headers["x-compute-characters"] == "4"
    assert answer.headers["x-prompt-tokens"] == "6"
    assert answer.headers["x-generated-tokens"] == "4"


@pytest.mark.parametrize("asked", [{"inputs": ["x", "y"]}, {"inputs": "x", "parameters": {"num_return_sequences": 2}}])
@pytest.mark.parametrize(
    ("route", "more", "word"),
    [
        ("/generate_stream", {}, "streamed"),
        ("/", {"stream": True}, "streamed"),
        ("/generate", {"parameters": {"best_of": 2, "do_sample": True}}, "best_of"),
    ],
)
def test_several_results_exclude_streams_and_best_of(
    client: httpx.Client, route: str, asked: dict[str, Any], more: dict[str, Any], word: str
) -> None:
    parameters = {**asked.get("parameters", {}), **more.get("parameters", {})}
    answer = client.post(route, json={**asked, **more, "parameters": parameters})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert word in answer.json()["error"]


@pytest.mark.parametrize("route", ["/", "/generate"])
@pytest.mark.parametrize(
    ("inputs", "count"), [(["a"] * 5, None), ([], None), ("a", 5), ("a", 0), ("a", -1), (["a", ""], None)]
)
def test_batch_over_the_limit_is_422(client: httpx.Client, route: str, inputs: Any, count: int | None) -> None:
    answer = client.post(route, json={"inputs": inputs, "parameters": {"num_return_sequences": count}})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    if inputs != ["a", ""]:
        assert "--max-client-batch-size" in answer.json()["error"]


def test_each_sequence_takes_a_permit(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=5) as router, router.client() as client:
        body = {"inputs": ["a", "b", "c"], "parameters": {"num_return_sequences": 2, "max_new_tokens": 1}}
        assert client.post("/generate", json=body).status_code == 422  # no waiting helps
        body["inputs"] = ["a", "b"]
        assert len(client.post("/generate", json=body).json()) == 4


LENGTHS = (1, 5, 16, 40, 160, 2000)  # characters, which are less than a block, some blocks, or several chunks


@pytest.mark.parametrize(
    ("route", "more", "lengths"),
    [
        ("/generate", {"best_of": 4}, LENGTHS),
        ("/generate", {"num_return_sequences": 4}, LENGTHS),
        ("/generate", {"best_of": 4, "decoder_input_details": True}, LENGTHS),
        ("/v1/completions", {"n": 4}, LENGTHS),
        ("/v1/completions", {"n": 4, "stream": True, "echo": True, "logprobs": 2}, LENGTHS),
        ("/v1/chat/completions", {"n": 4, "stream": True}, LENGTHS[-1:]),
    ],
    ids=str,
)
def test_sequences_of_one_prompt_share_one_prefill(
    tmp_path: Path, route: str, more: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    """The prompt is computed once. Each further sequence computes the last token again, for logits of its own."""
    with RunningRouter(tmp_path, max_best_of=4, max_total_tokens=4096) as router, router.client() as client:
        num_before = 0
        for length in lengths:
            text = chr(96 + length % 26) * length
            body: dict[str, Any] = {"prompt": text, "max_tokens": 2, **more}
            if route == "/generate":
                body = {"inputs": text, "parameters": {"do_sample": True, "max_new_tokens": 2, **more}}
            elif "chat" in route:
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}
            answer = client.post(route, json=body)
            assert answer.status_code == 200, answer.text
            sent = router.shard.last_admit
            assert sent is not None
            num_computed = router.stats().num_prompt_tokens_computed_total - num_before
            assert num_computed == len(sent.prompt_ids) // 4 + 3, length
            num_before += num_computed
            if more.get("decoder_input_details"):
                details = answer.json()["details"]
                assert [token["logprob"] for token in details["prefill"]] == [None] + [-1.0] * length
                assert all(other["prefill"] == details["prefill"] for other in details["best_of_sequences"])
            if more.get("echo"):
                chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
                shown = [chunk["choices"][0]["logprobs"] for chunk in chunks]
                rated = [logprobs["token_logprobs"] for logprobs in shown if logprobs is not None]
                assert sum(logprobs[1 : length + 1] == [-1.0] * length for logprobs in rated) == 4


# ---- max_time


def test_max_time_ends_with_what_there_is(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router, router.client() as client:
        answer = post(client, "/generate", "hi", max_time=0.15, max_new_tokens=1000, details=True)
        num_tokens = answer["details"]["generated_tokens"]
        assert 0 < num_tokens < 100
        assert len(answer["generated_text"]) == num_tokens
        assert answer["details"]["finish_reason"] == "length"
        router.wait_until_free()
        router.shard.pause()
        empty = post(client, "/generate", "hi", max_time=0.05, details=True)
        assert (empty["generated_text"], empty["details"]["finish_reason"]) == ("", "length")
        router.shard.resume()
        router.wait_until_free()


def test_max_time_ends_a_stream_with_a_last_event(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router, router.client() as client:
        body = {"inputs": "hi", "parameters": {"max_time": 0.1, "max_new_tokens": 1000, "details": True}}
        lines = client.post("/generate_stream", json=body).text.split("\n\n")[:-1]
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert 0 < len(events) < 100
        assert events[-1]["details"]["finish_reason"] == "length"
        assert len(events[-1]["generated_text"]) == len(events)
        router.wait_until_free()


@pytest.mark.parametrize("how", ["queued", "prefill", "stalled"])
def test_max_time_ends_a_stream_for_which_no_token_comes(tmp_path: Path, how: str) -> None:
    """`max_time` counts from the arrival, also in the queue. The last event has the text so far and an empty token."""
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005, num_slots=1)) as router, router.client() as client:
        holder = router.send("/generate", {"inputs": "x"}) if how == "queued" else None
        if holder is not None:
            router.wait_until_counts(running=1, waiting=0)
        elif how == "prefill":
            router.shard.pause()
        body = {"inputs": "hi", "parameters": {"max_time": 0.3, "max_new_tokens": 1500, "details": True}}
        began_s = time.monotonic()
        with client.stream("POST", "/generate_stream", json=body) as stream:
            assert stream.status_code == 200
            events = []
            for line in stream.iter_lines():
                if line:
                    events.append(json.loads(line.removeprefix("data: ")))
                    router.shard.pause()  # only the first tokens come
        assert 0.3 <= time.monotonic() - began_s < 3
        num_tokens = len(events) - 1
        assert (num_tokens > 0) == (how == "stalled")
        assert events[-1] == {
            "index": num_tokens + 1,
            "token": {"id": 257, "text": "", "logprob": None, "special": True},
            "generated_text": "".join(event["token"]["text"] for event in events),
            "details": {"finish_reason": "length", "generated_tokens": num_tokens, "seed": None, "input_length": 3},
        }
        if holder is not None:
            holder.close()
        router.shard.resume()
        router.wait_until_free()


@pytest.mark.parametrize("max_time", [0, -1, 1e400])
def test_max_time_is_a_number_of_seconds(client: httpx.Client, max_time: float) -> None:
    content = json.dumps({"inputs": "hi", "parameters": {"max_time": 0}}).replace(
        '"max_time": 0', f'"max_time": {max_time}'
    )
    answer = client.post(
        "/generate", content=content.replace("inf", "1e400"), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    if max_time <= 0:
        assert "max_time" in answer.json()["error"]


# ---- The wait for the model.


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        ({"x-wait-for-model": "true"}, None),
        ({"x-wait-for-model": "1"}, {"wait_for_model": False}),
        ({}, {"wait_for_model": True}),
    ],
)
@pytest.mark.parametrize("route", ["/", "/generate", "/generate_stream", "/tokenize"])
def test_call_waits_while_the_model_loads(
    tmp_path: Path, route: str, headers: dict[str, str], options: dict[str, Any] | None
) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        answers: list[httpx.Response] = []

        def call() -> None:
            answers.append(client.post(route, json={**BODY, "options": options}, headers=headers))

        caller = threading.Thread(target=call)
        caller.start()
        router.wait_until(lambda: router.service.permits.held == 1, "the call waits")
        router.shard.load(None)
        caller.join(10)
        assert answers[0].status_code == 200


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
        ("/chat_tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/detokenize", {"ids": [104]}),
        ("/invocations", {"inputs": "hi", "parameters": {"max_new_tokens": 2}}),
        ("/vertex", {"instances": [{"inputs": "hi", "parameters": {"max_new_tokens": 2}}]}),
    ],
)
def test_header_counts_on_the_other_routes(tmp_path: Path, route: str, body: dict[str, Any]) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        answers: list[httpx.Response] = []

        def call() -> None:
            answers.append(client.post(route, json=body, headers={"x-wait-for-model": "true"}))

        caller = threading.Thread(target=call)
        caller.start()
        router.wait_until(lambda: router.service.permits.held == 1, "the call waits")
        router.shard.load(None)
        caller.join(10)
        assert answers[0].status_code == 200, answers[0].text


def test_wait_has_an_end(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True, wait_for_model_timeout=0.1) as router, router.client() as client:
        answer = client.post("/generate", json=BODY, headers={"x-wait-for-model": "true"})
        assert answer.status_code == 503
        body = answer.json()
        assert body["error_type"] == "loading"
        assert body["estimated_time"] > 0
        assert int(answer.headers["retry-after"]) >= 1
        # The header wins over the body.
        answer = client.post(
            "/generate", json={**BODY, "options": {"wait_for_model": True}}, headers={"x-wait-for-model": "false"}
        )
        assert answer.status_code == 503


def test_those_who_wait_are_bounded_and_may_leave(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True, max_concurrent_requests=1) as router, router.client() as client:
        waiting = router.send("/generate", {**BODY, "options": {"wait_for_model": True}})
        router.wait_until(lambda: router.service.permits.held == 1, "one waits")
        assert client.post("/generate", json=BODY, headers={"x-wait-for-model": "true"}).status_code == 429
        waiting.close()
        router.wait_until(lambda: router.service.permits.held == 0, "nobody waits")


def test_those_who_wait_are_told_when_the_server_leaves(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router:
        waiting = router.send("/generate", {**BODY, "options": {"wait_for_model": True}})
        router.wait_until(lambda: router.service.permits.held == 1, "one waits")
        router.in_loop(router.service.permits.close)
        assert waiting.recv(13) == b"HTTP/1.1 503 "
        waiting.close()


@pytest.mark.parametrize("name", ["x-wait-for-model", "x-use-cache"])
def test_header_that_is_no_truth_is_422(tmp_path: Path, name: str) -> None:
    with RunningRouter(tmp_path, response_cache_bytes=1000) as router, router.client() as client:
        answer = client.post("/generate", json=BODY, headers={name: "maybe"})
        assert answer.status_code == 422
        assert name in answer.json()["error"]


# ---- The response cache.


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with RunningRouter(tmp_path_factory.mktemp("cached"), response_cache_bytes=100_000) as router:
        yield router


def is_hit(router: RunningRouter, route: str, body: dict[str, Any], **headers: str) -> bool:
    """Return whether the cache answered. Such an answer must sample no token."""
    before = router.shard.num_sampled
    with router.client() as client:
        answer = client.post(route, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    is_cached = answer.headers.get("x-cache") == "hit"
    assert is_cached == (router.shard.num_sampled == before)
    return is_cached


@pytest.mark.parametrize("route", ["/", "/generate", "/generate_stream"])
def test_equal_greedy_call_is_answered_from_the_cache(cached: RunningRouter, route: str) -> None:
    body = {"inputs": f"one {route}", "parameters": {"max_new_tokens": 3, "details": True}}
    with cached.client() as client:
        first, second = (client.post(route, json=body) for _ in range(2))
    assert "x-cache" not in first.headers
    assert second.headers["x-cache"] == "hit"
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    for name in ("x-compute-type", "x-compute-characters", "x-prompt-tokens", "x-generated-tokens"):
        assert second.headers.get(name) == first.headers.get(name)
    assert set(first.headers) - {"transfer-encoding"} <= set(second.headers)


def test_calls_that_differ_are_not_equal(cached: RunningRouter) -> None:
    base: dict[str, Any] = {"inputs": "two", "parameters": {"max_new_tokens": 3}}
    others = [
        {"inputs": "two!", "parameters": {"max_new_tokens": 3}},
        {"inputs": ["two"], "parameters": {"max_new_tokens": 3}},
        {"inputs": "two", "parameters": {"max_new_tokens": 4}},
        {"inputs": "two", "parameters": {"max_new_tokens": 3, "details": True}},
        {"inputs": "two", "parameters": {"max_new_tokens": 3, "do_sample": True, "seed": 1}},
        {"inputs": "two", "parameters": {"max_new_tokens": 3, "do_sample": True, "seed": 2}},
    ]
    assert not is_hit(cached, "/generate", base)
    for other in others:
        assert not is_hit(cached, "/generate", other)
    for route in ("/", "/generate_stream"):
        assert not is_hit(cached, route, base)
    assert not is_hit(cached, "/generate", base, authorization="Bearer other")
    assert all(is_hit(cached, "/generate", body) for body in (base, *others))
    # Unknown fields do not make calls different, nor do absent ones.
    assert is_hit(cached, "/generate", {**base, "new": 1, "options": {"use_cache": True}})


def test_answer_from_the_cache_counts_as_a_request_that_succeeds(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, response_cache_bytes=10_000) as router, router.client() as client:
        for _ in range(3):
            assert client.post("/generate", json=BODY).status_code == 200
        text = client.get("/metrics").text
        for line in ("tgi_request_count 3", "tgi_request_success 3", "textmill_response_cache_hits 2"):
            assert f"\n{line}\n" in text
        # Tokens and times are those of the first call, because the second call generates none.
        assert "\ntgi_request_duration_count 1\n" in text
        assert "\ntextmill_output_tokens 3\n" in text


def test_sampled_call_without_a_seed_is_never_kept(cached: RunningRouter) -> None:
    body = {"inputs": "three", "parameters": {"max_new_tokens": 3, "do_sample": True}}
    assert [is_hit(cached, "/generate", body) for _ in range(2)] == [False, False]
    timed = {"inputs": "three", "parameters": {"max_new_tokens": 3, "max_time": 5}}
    assert [is_hit(cached, "/generate", timed) for _ in range(2)] == [False, False]


def test_cache_can_be_declined(cached: RunningRouter) -> None:
    body = {"inputs": "four", "parameters": {"max_new_tokens": 3}}
    assert not is_hit(cached, "/generate", body)
    assert is_hit(cached, "/generate", body)
    assert not is_hit(cached, "/generate", body, **{"x-use-cache": "false"})
    assert not is_hit(cached, "/generate", {**body, "options": {"use_cache": False}})
    assert is_hit(cached, "/generate", {**body, "options": {"use_cache": False}}, **{"x-use-cache": "true"})


def test_failed_answer_is_not_kept(cached: RunningRouter) -> None:
    body = {"inputs": "five", "parameters": {"max_new_tokens": 3}}
    cached.shard.reject_next_admission()
    with cached.client() as client:
        assert client.post("/generate", json=body).status_code == 500
    cached.wait_until_healthy()
    assert not is_hit(cached, "/generate", body)


def test_cache_is_off_by_default(router: RunningRouter) -> None:
    assert [is_hit(router, "/generate", BODY) for _ in range(2)] == [False, False]


# ---- Tracing.


def test_trace_parent_is_taken_and_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with caplog.at_level("INFO", "textmill_router.serving.call_record"):
        for parent in (f"00-{trace}-00f067aa0ba902b7-01", "nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01"):
            assert client.post("/generate", json=BODY, headers={"traceparent": parent}).status_code == 200
    found = [vars(record)["trace"] for record in caplog.records if record.message == "Success"]
    assert found == [trace, None, None]


def test_raw_connection_gets_retry_after_in_whole_seconds(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=1) as router, router.client() as client:
        router.shard.pause()
        holder: socket.socket = router.send("/generate", BODY)
        router.wait_until(lambda: router.service.permits.held == 1, "one holds the permit")
        answer = client.post("/generate", json=BODY)
        assert answer.status_code == 429
        assert answer.headers["retry-after"].isdigit()
        router.in_loop(router.service.permits.close)
        answer = client.post("/generate", json=BODY)
        assert answer.status_code == 503
        assert answer.headers["retry-after"].isdigit()
        router.shard.resume()
        holder.close()
