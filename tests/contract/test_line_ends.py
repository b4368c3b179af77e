"""Answers with characters at which readers of lines split. Each event stays one line, and its text stays whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.speaking_router import speaking_router

TEXT = "one\u2028two\u2029three\x85four"
_GENERATE = {"inputs": "hi"}
_CHAT = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 2}
_COMPLETION = {"prompt": "hi" + TEXT, "echo": True}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", _GENERATE),
    ("/", _GENERATE),
    ("/v1/chat/completions", _CHAT),
    ("/v1/completions", _COMPLETION),
    ("/invocations", _CHAT),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("lines")
    with speaking_router(folder, TEXT, response_cache_bytes=100_000) as router, router.client() as client:
        yield client


def text_of(answer: Any) -> str:
    """Return the text of a whole answer or of an event, in any dialect."""
    if isinstance(answer, list):
        return text_of(answer[0])
    if "token" in answer:
        return str(answer["token"]["text"]) * (not answer["token"]["special"])
    if "generated_text" in answer:
        return str(answer["generated_text"])
    choice = answer["choices"][0]
    if "text" in choice:
        return str(choice["text"])
    return str(choice.get("message", choice.get("delta")).get("content") or "")


@pytest.mark.parametrize(("route", "body"), CALLS)
def test_lines_of_an_event_stream_are_its_own(client: httpx.Client, route: str, body: dict[str, Any]) -> None:
    wanted = "hi" + TEXT + TEXT if "prompt" in body else TEXT
    route = "/generate_stream" if route == "/generate" else route
    for _ in range(2):  # the second answer of TGI's dialect comes from the cache
        with client.stream("POST", route, json={**body, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line not in ("", "data: [DONE]")]
        assert all(line.startswith("data: ") for line in lines), lines
        assert "".join(text_of(json.loads(line.removeprefix("data: "))) for line in lines) == wanted


@pytest.mark.parametrize(("route", "body"), CALLS)
def test_whole_answer_is_one_line(client: httpx.Client, route: str, body: dict[str, Any]) -> None:
    for _ in range(2):
        answer = client.post(route, json=body)
        assert len(answer.text.splitlines()) == 1
        prompt = {"/": "hi", "/v1/completions": "hi" + TEXT}.get(route, "")  # shown before the answer
        assert text_of(answer.json()) == prompt + TEXT


def test_error_is_one_line(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": "hi", "parameters": {"adapter_id": TEXT}})
    assert answer.status_code == 422
    assert len(answer.text.splitlines()) == 1
