"""A stop string that is a special token's text stops at that token, on every route that writes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes.byte_tokenizer import BEGIN, BEGIN_ID
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

OUTPUT = (*b"hi", BEGIN_ID, *b"xy")
STOPS = [[BEGIN], ["never", BEGIN], [f"i{BEGIN}x"]]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    options = FakeShardOptions(script=lambda prompt_ids, num_output: OUTPUT[num_output % len(OUTPUT)])
    with RunningRouter(tmp_path_factory.mktemp("model"), options) as router, router.client() as client:
        yield client


def events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = client.post(path, json=body).text.splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("data:") and "[DONE]" not in line]


@pytest.mark.parametrize("stop", STOPS)
def test_tgi_keeps_what_the_answer_shows_of_the_match(client: httpx.Client, stop: list[str]) -> None:
    text = "hix" if stop[0].endswith("x") else "hi"
    parameters = {"max_new_tokens": 20, "stop": stop, "details": True}
    body = {"inputs": "hi", "parameters": parameters}
    answer = client.post("/generate", json=body).json()
    assert (answer["generated_text"], answer["details"]["finish_reason"]) == (text, "stop_sequence")
    last = events(client, "/generate_stream", body)[-1]
    assert last["generated_text"] == text


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_openai_leaves_the_whole_match_out(client: httpx.Client, stop: list[str], is_streamed: bool) -> None:
    text = "h" if stop[0].startswith("i") else "hi"
    fields = {"max_tokens": 20, "stop": stop, "stream": is_streamed}
    chat = {"messages": [{"role": "user", "content": "hi"}], **fields}
    completion = {"prompt": "hi", **fields}
    for path, body, part in (("/v1/chat/completions", chat, "delta"), ("/v1/completions", completion, "text")):
        if is_streamed:
            choices = [choice for chunk in events(client, path, body) for choice in chunk["choices"]]
            texts = [one["text"] if part == "text" else one["delta"].get("content") for one in choices]
            found = "".join(text or "" for text in texts)
            reason = choices[-1]["finish_reason"]
        else:
            [choice] = client.post(path, json=body).json()["choices"]
            found = choice["message"]["content"] if part == "delta" else choice["text"]
            reason = choice["finish_reason"]
        assert (found, reason) == (text, "stop"), path
