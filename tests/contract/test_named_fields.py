"""A refusal names the field at fault, with the range that the field has on the route."""

from typing import Any

import httpx
import pytest

from tests.fakes.chat_calls import USER, error_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {CHAT: {"messages": [USER]}, COMPLETIONS: {"prompt": "hi"}}
PATHS = ["/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions"]
CALLED = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}

MISSING: list[tuple[str, dict[str, Any], str]] = [
    *[(path, {}, "messages" if "chat" in path else "prompt") for path in PATHS],
    *[(path, {"messages": None, "prompt": None}, "messages" if "chat" in path else "prompt") for path in PATHS],
    (CHAT, {"messages": [USER, {"content": "x"}]}, "messages[1].role"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "messages[0].tool_calls[0].function.name",
    ),
    (CHAT, {"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call.name"),
    (CHAT, {"messages": [USER], "tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"messages": [USER], "tools": [{"function": {}}]}, "tools[0].function.name"),
    (CHAT, {"messages": [USER], "functions": [{}]}, "functions[0].name"),
    (CHAT, {"messages": [USER], "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
]


@pytest.mark.parametrize(("path", "body", "param"), MISSING, ids=str)
def test_missing_field_is_named(client: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    error = error_of(client.post(path, json=body), 422)
    assert error["param"] == param
    is_null = param in body
    assert error["message"].startswith(f"`{param}`: expected" if is_null else f"`{param}` is missing")


@pytest.mark.parametrize(
    ("path", "words"),
    [("/tokenize", "`inputs` is missing"), ("/detokenize", "`ids` is missing"), ("/generate", "`inputs` is missing")],
)
def test_missing_field_is_named_in_tgis_errors_too(client: httpx.Client, path: str, words: str) -> None:
    answer = client.post(path, json={})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"Input validation error: {words}")


TOO_LARGE: list[tuple[str, bytes, str]] = [
    (CHAT, b'"temperature":1e999', "temperature"),
    (CHAT, b'"temperature":-1E400', "temperature"),
    (CHAT, b'"top_p":' + b"9" * 400, "top_p"),
    (CHAT, b'"seed":' + b"9" * 5000, "seed"),
    (CHAT, b'"logit_bias":{"5":1,"7":1e999}', "logit_bias.7"),
    (CHAT, b'"stop_token_ids":[1,1e999]', "stop_token_ids[1]"),
    (COMPLETIONS, b'"temperature":1e999', "temperature"),
    (COMPLETIONS, b'"max_tokens":' + b"9" * 5000, "max_tokens"),
]


@pytest.mark.parametrize(("route", "field", "param"), TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_number_beyond_floats_is_out_of_range(client: httpx.Client, route: str, field: bytes, param: str) -> None:
    start = b'{"messages":[{"role":"user","content":"hi"}],' if route == CHAT else b'{"prompt":"hi",'
    body = start + field + b"}"
    error = error_of(client.post(route, content=body, headers={"content-type": "application/json"}), 422)
    assert error["param"] == param
    assert error["message"].startswith(f"`{param}` must be a ")
    broken = client.post(route, content=body[:-1], headers={"content-type": "application/json"})
    assert error_of(broken, 400)["message"].startswith("the body is not JSON")


def test_number_beyond_floats_is_out_of_range_in_tgis_dialect(client: httpx.Client) -> None:
    body = b'{"inputs":"hi","parameters":{"temperature":1e999}}'
    answer = client.post("/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "`parameters.temperature` must be a number in the range" in answer.json()["error"]


# As OpenAI, vLLM and TGI publish the ranges; the sentence must not exclude a value that the route takes.
RANGES: list[tuple[str, dict[str, Any], str, str]] = [
    *[(route, {"top_p": 1.5}, "top_p", "must be 0 to 1 (1 is off), found 1.5") for route in BODIES],
    *[(route, {"top_k": -2}, "top_k", "must be -1 to 2147483647 (0 and -1 are off), found -2") for route in BODIES],
    *[
        (route, {"truncate_prompt_tokens": value}, "truncate_prompt_tokens", "must be 1 to 1500, or -1 for 1500, found")
        for route in BODIES
        for value in (0, -2, 1501)
    ],
    (COMPLETIONS, {"repetition_penalty": -1}, "repetition_penalty", "must be >= 0 (0 and 1 are off), found -1"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens", "must be 0 to 4294967295 (0 with `echo`), found -1"),
    (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens", "`max_completion_tokens` must be 1 to 4294967295"),
    (CHAT, {"max_completion_tokens": 2, "min_tokens": 3}, "min_tokens", "must be <= `max_completion_tokens` 2"),
    (CHAT, {"max_tokens": 2, "min_tokens": 3}, "min_tokens", "must be <= `max_tokens` 2, found 3"),
    (COMPLETIONS, {"truncate": 2, "truncate_prompt_tokens": 2}, "truncate", "exclude each other"),
    (
        COMPLETIONS,
        {"truncate_prompt_tokens": 2, "echo": True, "logprobs": 1},
        "truncate_prompt_tokens",
        "`truncate_prompt_tokens` must not be set with",
    ),
    (CHAT, {"messages": [{"role": "", "content": "x"}]}, "messages[0].role", "must not be empty"),
    (CHAT, {"response_format": {}}, "response_format.type", "must be `text`, `json_object`, `json_schema`"),
    (CHAT, {"response_format": {"type": 5}}, "response_format.type", "found a value that is no text"),
]


@pytest.mark.parametrize(("route", "fields", "param", "words"), RANGES, ids=str)
def test_range_is_that_of_the_route(
    client: httpx.Client, route: str, fields: dict[str, Any], param: str, words: str
) -> None:
    error = error_of(client.post(route, json={**BODIES[route], **fields}), 422)
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("route", BODIES)
def test_truncation_by_minus_one_keeps_the_longest_prompt_that_fits(client: httpx.Client, route: str) -> None:
    """vLLM: -1 stands for the limit of the model; a prompt may have 1,500 tokens here."""
    text = "x" * 1700
    long = {"messages": [{"role": "user", "content": text}]} if route == CHAT else {"prompt": text}
    answer = client.post(route, json={**long, "max_tokens": 1, "truncate_prompt_tokens": -1})
    assert answer.json()["usage"]["prompt_tokens"] == 1500
    short = client.post(route, json={**BODIES[route], "max_tokens": 1, "truncate_prompt_tokens": -1}).json()["usage"]
    plain = client.post(route, json={**BODIES[route], "max_tokens": 1}).json()["usage"]
    assert short["prompt_tokens"] == plain["prompt_tokens"]
