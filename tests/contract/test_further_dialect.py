"""A dialect that the server does not speak, served beside the others by the route that all dialects share."""

import ast
import asyncio
import json
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp
from textmill_router.http.api_keys import ApiKeyEntry, KeyRing, digest_of
from textmill_router.http.middleware import ApiKey, FrontDoor
from textmill_router.http.path_style import PathStyles

from tests.fakes import messages_dialect
from tests.fakes.running_router import RunningRouter
from tests.fakes.speaking_router import speaking_router
from tests.fakes.weather_tools import OUTPUTS, SCHEMA

USER = {"role": "user", "content": "hi"}
TOOLS = [{"name": "get_weather", "input_schema": SCHEMA}, {"name": "get_time", "input_schema": {"type": "object"}}]


def app_of(router: RunningRouter) -> ASGIApp:
    """Return the dialect's route behind the middlewares, with an API key."""
    route = messages_dialect.messages_route(router.service)
    styles = PathStyles([route.style])
    return FrontDoor(
        ApiKey(route, KeyRing([ApiKeyEntry("k", digest_of(b"a key"))]), styles), router.service.metrics.on_http, styles
    )


def ask(router: RunningRouter, body: dict[str, Any], key: str = "a key") -> httpx.Response:
    """Make a call of the dialect, in the server's loop."""

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(router))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/messages", json=body, headers={"x-api-key": key})

    call: Coroutine[Any, Any, httpx.Response] = post()
    return asyncio.run_coroutine_threadsafe(call, router.loop).result(20)


def test_answers_and_events_of_its_own_shape(tmp_path: Path) -> None:
    with speaking_router(tmp_path, OUTPUTS["qwen2_5"], "qwen2_5") as router:
        body = {"max_tokens": 300, "messages": [USER], "tools": TOOLS}
        answer = ask(router, body)
        assert answer.status_code == 200
        assert answer.json()["content"] == [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "name": "get_weather", "input": {"city": "東京"}},
            {"type": "tool_use", "name": "get_time", "input": {}},
        ]
        assert int(answer.headers["x-generated-tokens"]) == len(OUTPUTS["qwen2_5"].encode()) + 1
        events = ask(router, {**body, "stream": True}).text.split("\n\n")
        assert events[-2:] == ["event: stop\ndata: {}", ""]
        texts = [json.loads(event.removeprefix("event: text\ndata: "))["text"] for event in events[:-2]]
        assert "".join(texts).strip() == "Let me see."
        ask(router, {**body, "must_call": True})
        assert "get_weather" in router.shard.history[-1].last_admit.grammar.text
        router.wait_until_free()


def test_errors_and_the_key_in_its_own_style(tmp_path: Path) -> None:
    with speaking_router(tmp_path, "x", "qwen2_5") as router:
        body = {"max_tokens": 5, "messages": [USER]}
        refused = ask(router, body, key="another key")
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "unauthorized")
        assert "`x-api-key: <key>`" in refused.json()["error"]["message"]
        bad_tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": 7}}}}
        for wrong, words in (({"messages": [USER]}, "`max_tokens`"), ({**body, "max_tokens": 0}, "`max_tokens` must")):
            answer = ask(router, wrong)
            assert answer.status_code == 422
            assert set(answer.json()) == {"type", "error"}
            assert words in answer.json()["error"]["message"]
        answer = ask(router, {**body, "tools": [bad_tool], "must_call": True})
        assert answer.status_code == 422
        assert "`tools` does not compile" in answer.json()["error"]["message"]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_it_needs_nothing_of_the_other_dialects() -> None:
    """The dialect imports no file of another dialect, neither by itself nor through its imports."""
    path = Path(messages_dialect.__file__)
    assert {name for name in imported(path) if name.startswith("textmill_router.api")} == set()
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, tests.fakes.messages_dialect; print(*sys.modules, sep='\\n')"],
        cwd=path.parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "textmill_router.serving.route" in loaded
    assert [name for name in loaded if name.startswith("textmill_router.api")] == []
