"""OpenAI's routes without `/v1`, for clients whose base URL lacks it: the answers and errors are those of `/v1`."""

from typing import Any

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"prompt": "hi", "max_tokens": 2}
CALLS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/chat/completions", CHAT),
    ("POST", "/completions", COMPLETION),
    ("GET", "/models", None),
    ("GET", "/models/fake/model", None),
]
FAULTS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/chat/completions", {"messages": []}),
    ("POST", "/completions", {"prompt": "hi", "temperature": -1}),
    ("GET", "/models/other", None),
    ("PUT", "/models", None),
    ("GET", "/completions", None),
]


def without_changes(answer: Any) -> Any:
    """Return the answer without the fields that differ from call to call."""
    if isinstance(answer, dict):
        changing = ("id", "created", "prompt_tokens_details")
        return {key: without_changes(value) for key, value in answer.items() if key not in changing}
    return [without_changes(one) for one in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_answer_is_that_of_v1(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> None:
    short, full = (client.request(method, prefix + path, json=body) for prefix in ("", "/v1"))
    assert (short.status_code, full.status_code) == (200, 200)
    assert without_changes(short.json()) == without_changes(full.json())


@pytest.mark.parametrize(("method", "path", "body"), FAULTS)
def test_error_has_openais_object(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> None:
    short, full = (client.request(method, prefix + path, json=body) for prefix in ("", "/v1"))
    assert short.status_code == full.status_code
    assert short.status_code >= 400
    assert set(short.json()["error"]) == {"message", "type", "param", "code"}
    messages = [answer.json()["error"]["message"].replace("/v1", "") for answer in (short, full)]
    assert messages[0] == messages[1]


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_streams_too(client: httpx.Client, path: str) -> None:
    body = CHAT if "chat" in path else COMPLETION
    answer = client.post(path, json={**body, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.endswith("data: [DONE]\n\n")
