"""The render routes: the tokens that the real call computes, the refusals of the real call, no permit and no queue."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize("body", [{"messages": [USER]}, {"messages": [USER], "truncate_prompt_tokens": 3}])
def test_a_rendered_chat_has_the_tokens_of_the_real_call(client: httpx.Client, body: dict[str, Any]) -> None:
    real = client.post(CHAT, json={**body, "max_tokens": 1, "return_token_ids": True}).json()
    answer = client.post(f"{CHAT}/render", json=body)
    assert answer.status_code == 200
    assert answer.json() == {"token_ids": real["prompt_token_ids"], "features": None}
    assert len(answer.json()["token_ids"]) == real["usage"]["prompt_tokens"]


@pytest.mark.parametrize("prompt", ["hi", ["hi", "there"], [104, 105], [[104], [105, 106]]])
def test_a_rendered_completion_has_the_tokens_of_each_prompt(client: httpx.Client, prompt: object) -> None:
    real = client.post(TEXT, json={"prompt": prompt, "max_tokens": 1, "return_token_ids": True}).json()
    answer = client.post(f"{TEXT}/render", json={"prompt": prompt})
    assert answer.status_code == 200
    assert answer.json() == [{"token_ids": choice["prompt_token_ids"]} for choice in real["choices"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": []}),
        (CHAT, {}),
        (CHAT, {"messages": [USER], "top_p": 7}),
        (CHAT, {"messages": [USER], "stop_token_ids": [-1]}),
        (CHAT, {"messages": [USER], "max_completion_tokens": 0}),
        (CHAT, {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}),
        (TEXT, {"prompt": "x" * 40_000}),
        (TEXT, {"prompt": "x", "best_of": 1, "n": 2}),
        (TEXT, {"prompt": "x", "suffix": "y"}),
        (TEXT, {"prompt": "x", "stop_token_ids": [-1]}),
        (TEXT, {"prompt": "x", "guided_regex": "(unclosed"}),
    ],
)
def test_a_render_route_refuses_what_the_real_call_refuses(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    real, rendered = client.post(path, json=body), client.post(f"{path}/render", json=body)
    assert real.status_code in (400, 422)
    assert (rendered.status_code, rendered.json()) == (real.status_code, real.json())


def test_a_full_server_still_renders(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=1)
    with RunningRouter(tmp_path, options, max_concurrent_requests=1) as router, router.client() as client:
        router.shard.pause()
        held = router.send(TEXT, {"prompt": "hi", "max_tokens": 2})
        router.wait_until_counts(running=1, waiting=0)
        steps = router.shard.num_steps
        assert client.post(TEXT, json={"prompt": "hi"}).status_code == 429
        assert client.post(f"{TEXT}/render", json={"prompt": "hi"}).status_code == 200
        assert client.post(f"{TEXT}/render", json={"prompt": "hi", "stream": True}).status_code == 200
        assert (router.in_loop(lambda: router.service.permits.held), router.shard.num_steps) == (1, steps)
        router.shard.resume()
        assert held.recv(13) == b"HTTP/1.1 200 "
        held.close()
        router.wait_until_free()


def test_a_render_route_asks_for_a_key_and_for_the_served_model(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, api_key=("k",), strict_model=True) as router, router.client() as client:
        body = {"prompt": "hi", "model": "other"}
        assert client.post(f"{TEXT}/render", json=body).status_code == 401
        assert client.post(f"{TEXT}/render", json=body, headers={"authorization": "Bearer k"}).status_code == 404
