"""Calls /v1/chat/completions, and reads answers, streams and errors after a check of their form."""

import json
from typing import Any

import httpx

USER = {"role": "user", "content": "hi"}


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 3, **fields})


def answer_of(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = ask(client, **fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunks before `[DONE]`, after a check of the framing."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    parts = answer.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert all(part.startswith("data: {") for part in parts[:-2])
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def stream(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    return chunks_of(ask(client, stream=True, **fields))


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error object of an error in the style `mixed`, after a check of its form."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert isinstance(body["error_type"], str)
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def schema_of(grammar: str) -> dict[str, Any]:
    """Return the schema that the whole output must match."""
    schema: dict[str, Any] = json.loads(grammar.removeprefix("start: %json "))
    del schema["x-guidance"]
    return schema


def calls_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of a stream, put together as clients do."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", []):
            if "id" in delta:
                assert delta["index"] == len(calls)
                assert delta["type"] == "function"
                calls.append({"id": delta["id"], "type": "function", "function": dict(delta["function"])})
            else:
                assert set(delta["function"]) == {"arguments"}
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls
