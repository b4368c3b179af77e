"""Streams of TGI's dialect: framing byte by byte, events, headers, errors before and after the first event."""

import json
import math
from array import array
from typing import Any

import httpx
import pytest
from textmill_router.api.tgi.answers import TgiEvents
from textmill_router.text.events import TokenEvent, TopToken

from tests.fakes.running_router import RunningRouter


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the events, after a check that each is `data: `, one line and a blank line."""
    assert answer.status_code == 200, answer.text
    lines = answer.text.split("\n")
    assert lines[-1] == ""
    assert lines[1::2] == [""] * (len(lines) // 2)
    assert all(line.startswith("data: {") for line in lines[:-1:2])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1:2]]


def stream(
    client: httpx.Client, route: str = "/generate_stream", text: str = "hi", **parameters: Any
) -> httpx.Response:
    body = {"inputs": text, "parameters": {"max_new_tokens": 2, **parameters}, "stream": True}
    return client.post(route, json=body)


def test_bytes_of_a_stream(client: httpx.Client) -> None:
    assert stream(client, details=True).content == (
        b'data: {"index":1,"token":{"id":97,"text":"a","logprob":-0.5,"special":false},'
        b'"generated_text":null,"details":null}\n\n'
        b'data: {"index":2,"token":{"id":98,"text":"b","logprob":-0.5,"special":false},"generated_text":"ab",'
        b'"details":{"finish_reason":"length","generated_tokens":2,"seed":null,"input_length":3}}\n\n'
    )


def test_index_counts_from_one_and_only_the_last_event_has_the_text(client: httpx.Client) -> None:
    events = events_of(stream(client, max_new_tokens=60))
    assert [event["index"] for event in events] == list(range(1, 61))
    assert [event["generated_text"] is None for event in events] == [True] * 59 + [False]
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)


def test_details_are_null_unless_asked(client: httpx.Client) -> None:
    events = events_of(stream(client))
    assert all(set(event) == {"index", "token", "generated_text", "details"} for event in events)
    assert [event["details"] for event in events] == [None, None]


def test_top_tokens_stand_in_each_event_when_asked(client: httpx.Client) -> None:
    events = events_of(stream(client, top_n_tokens=2))
    assert [len(event["top_tokens"]) for event in events] == [2, 2]
    assert set(events[0]["top_tokens"][0]) == {"id", "text", "logprob", "special"}


def test_compatible_route_streams_and_gives_the_prompt_back(client: httpx.Client) -> None:
    assert events_of(stream(client, "/"))[-1]["generated_text"] == "hiab"
    assert events_of(stream(client, "/", return_full_text=False))[-1]["generated_text"] == "ab"
    assert events_of(stream(client))[-1]["generated_text"] == "ab"


def test_stop_string_keeps_whole_tokens_and_cuts_the_text(client: httpx.Client) -> None:
    events = events_of(stream(client, stop=["cd"], max_new_tokens=9, details=True))
    assert [event["token"]["text"] for event in events] == ["a", "b", "c", "d"]
    assert events[-1]["generated_text"] == "abcd"
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"


def test_headers_of_a_stream(client: httpx.Client) -> None:
    headers = stream(client, text="héllo").headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-compute-type"] == "1-cpu"
    assert headers["x-compute-characters"] == "5"
    assert "x-total-time" not in headers
    assert "x-request-id" in headers


@pytest.mark.parametrize("seed", [None, 7])
def test_seed_of_a_sampled_stream(client: httpx.Client, seed: int | None) -> None:
    shown = events_of(stream(client, do_sample=True, seed=seed, details=True))[-1]["details"]["seed"]
    assert shown == seed if seed is not None else isinstance(shown, int)


def test_spliced_event_is_the_json_it_stands_for() -> None:
    """Texts and numbers that a template of an event could break. Log-probabilities are 32-bit floats on the wire."""
    writer = TgiEvents(prompt='"p', seed=None, wants_details=False, wants_top_tokens=True)
    for text in ('"', "\\", "\n\r\t\0\x1f", "é😀\u2028", "%s{}", ""):
        for logprob in (-0.12, -1.2345678, 0.0, -1e-9, -103.25, math.nan, -math.inf):
            narrow = array("f", [logprob])[0]
            top = TopToken(5, text, narrow, True)
            event = TokenEvent(3, 9, text, narrow, False, (top,), text)
            line = writer.encode([event]).decode()
            assert line.startswith("data: ")
            assert line.endswith("}\n\n")
            assert "\n" not in line[:-2]
            shown = json.loads(line[6:])
            assert shown["token"]["text"] == shown["top_tokens"][0]["text"] == text
            assert shown["generated_text"] is None
            for found in (shown["token"]["logprob"], shown["top_tokens"][0]["logprob"]):
                if math.isfinite(logprob):
                    assert array("f", [found])[0] == pytest.approx(narrow, rel=1e-7)
                else:
                    assert found is None


def test_failure_before_the_first_event_has_its_status(router: RunningRouter, client: httpx.Client) -> None:
    router.shard.reject_next_admission()
    answer = stream(client)
    assert answer.status_code == 500
    assert answer.json()["error_type"] == "internal"
    router.wait_until_healthy()
    assert events_of(stream(client))[-1]["generated_text"] == "ab"
