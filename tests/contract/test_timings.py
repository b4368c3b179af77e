"""Each answer says where its time went: the header `x-textmill-timings`, and the object `timings` for those who ask."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

STEP_S = 0.02
PROMPT = "x" * 40  # a token per byte and BEGIN: 41 tokens, three chunks of at most 16 of them
NUM_CHUNKS = 3
NUM_TOKENS = 5
ASK = {"textmill": {"timings": True}}
FIELDS = ["queue_ms", "prefill_ms", "decode_ms", "cached_tokens", "preemptions", "steps"]


@pytest.fixture(scope="module")
def slow_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A router whose shard takes 20 ms for a step of at most 16 tokens and keeps no prefixes."""
    options = FakeShardOptions(step_s=STEP_S, max_step_tokens=16, num_slots=8, num_blocks=512)
    folder = tmp_path_factory.mktemp("slow")
    with (
        RunningRouter(folder, options, prefix_caching=False, response_cache_bytes=100_000) as router,
        router.client() as client,
    ):
        yield client


def generate(**further: Any) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": NUM_TOKENS}, **further}


def completion(**further: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, **further}


def chat(**further: Any) -> dict[str, Any]:
    message = {"role": "user", "content": PROMPT}
    return {"messages": [message], "max_tokens": NUM_TOKENS, "temperature": 0, **further}


WHOLE = [("/generate", generate), ("/v1/completions", completion), ("/v1/chat/completions", chat)]


def in_header(answer: httpx.Response) -> dict[str, float]:
    """Return the members of the header, which is a dictionary of RFC 8941."""
    pairs = (pair.split("=") for pair in answer.headers["x-textmill-timings"].split(", "))
    return {name.replace("-", "_"): float(value) for name, value in pairs}


def check(timings: dict[str, float], *, num_chunks: int | None = NUM_CHUNKS, num_sequences: int = 1) -> None:
    assert list(timings) == FIELDS
    assert timings["prefill_ms"] > 0
    assert timings["decode_ms"] > 0
    # A router that is late to hear of the first token counts less for the further tokens, but no step is lost. The
    # first step may be under way when the request comes, and clocks are coarse.
    num_steps = (num_chunks or NUM_CHUNKS) + NUM_TOKENS - 2
    assert timings["prefill_ms"] + timings["decode_ms"] >= 0.9 * num_steps * STEP_S * 1000
    assert 0 <= timings["queue_ms"] < 5_000
    assert (timings["cached_tokens"], timings["preemptions"]) == (0, 0)
    if num_chunks is not None:
        # Each chunk of the prompt is a step, the last of which gives the first token.
        assert timings["steps"] == num_sequences * (num_chunks + NUM_TOKENS - 1)


@pytest.mark.parametrize(("route", "body"), WHOLE)
def test_whole_answer_has_the_header_and_for_those_who_ask_the_object(
    slow_client: httpx.Client, route: str, body: Any
) -> None:
    num_chunks = None if route.endswith("chat/completions") else NUM_CHUNKS  # the template adds tokens
    plain = slow_client.post(route, json=body())
    assert "timings" not in plain.json()
    check(in_header(plain), num_chunks=num_chunks)
    answer = slow_client.post(route, json=body(**ASK))
    check(answer.json()["timings"], num_chunks=num_chunks)
    assert answer.json()["timings"] == in_header(answer)
    assert in_header(answer)["queue_ms"] + in_header(answer)["prefill_ms"] < float(answer.headers["x-total-time"]) + 1


def events_of(answer: httpx.Response) -> list[Any]:
    lines = [line[5:].strip() for line in answer.text.split("\n") if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(
    ("route", "body"), [("/generate_stream", generate), *((name, body) for name, body in WHOLE[1:])]
)
def test_last_event_of_a_stream_has_the_object_for_those_who_ask(
    slow_client: httpx.Client, route: str, body: Any
) -> None:
    streams = {} if route == "/generate_stream" else {"stream": True}
    assert "timings" not in slow_client.post(route, json=body(**streams)).text
    *events, last = events_of(slow_client.post(route, json=body(**streams, **ASK)))
    check(last["timings"], num_chunks=None if route.endswith("chat/completions") else NUM_CHUNKS)
    assert not any("timings" in event for event in events)


@pytest.mark.parametrize(("route", "body"), WHOLE[1:])
def test_each_choice_and_the_event_of_usage_have_the_object(slow_client: httpx.Client, route: str, body: Any) -> None:
    asked = body(stream=True, n=2, stream_options={"include_usage": True}, **ASK)
    events = events_of(slow_client.post(route, json=asked))
    ends = [event for event in events if event["choices"] and event["choices"][0]["finish_reason"]]
    assert len([event for event in events if "timings" in event]) == 3
    assert all(list(event["timings"]) == FIELDS for event in (*ends, events[-1]))
    for name in ("steps", "preemptions"):
        assert events[-1]["timings"][name] == sum(end["timings"][name] for end in ends)


def test_stop_string_ends_the_count(slow_client: httpx.Client) -> None:
    """The router ends such a request itself, without a last word of the shard."""
    body = generate(parameters={"max_new_tokens": 20, "stop": ["bc"]}, **ASK)
    assert slow_client.post("/generate", json=body).json()["timings"]["steps"] == NUM_CHUNKS + 2


def test_cached_tokens_are_counted(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions()) as router, router.client() as client:
        first, second = (client.post("/generate", json=generate(**ASK)).json()["timings"] for _ in range(2))
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 32)
    assert (first["steps"], second["steps"]) == (NUM_TOKENS, NUM_TOKENS)


def test_kept_answer_took_no_time_and_is_not_kept_with_its_times(slow_client: httpx.Client) -> None:
    asked = [slow_client.post("/generate", json=generate(**ASK)) for _ in range(2)]
    assert not any("x-cache" in answer.headers for answer in asked)
    kept = [slow_client.post("/generate", json=generate()) for _ in range(2)][1]
    assert kept.headers["x-cache"] == "hit"
    assert set(in_header(kept).values()) == {0.0}


@pytest.mark.parametrize(("route", "body"), WHOLE)
def test_other_wishes_to_textmill_are_refused_by_name(client: httpx.Client, route: str, body: Any) -> None:
    answer = client.post(route, json=body(textmill={"timing": True}))
    assert answer.status_code == 422
    assert re.search("timing", answer.text)
