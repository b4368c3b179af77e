"""Every wrong call gets its status, its `error_type` and a JSON body, streamed or not, and the server stays up."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.byte_tokenizer import END, END_ID
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

ROUTES = ("/generate", "/generate_stream", "/")
LONG = "x" * 3000  # 3,001 tokens, over every limit

# Each row has parameters and a word of the message.
BROKEN_RULES: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 3, "do_sample": True}, "best_of"),
    ({"best_of": 0}, "best_of"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e39}, "temperature"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": -1.5}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"typical_p": 1.1}, "typical_p"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": -5}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_p": 1}, "min_p"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": -1}, "max_new_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "--max-stop-sequences"),
    ({"stop": ["a", ""]}, "empty string"),
    ({"stop": ""}, "empty string"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"top_n_tokens": 6}, "top_n_tokens"),
    ({"top_n_tokens": -1}, "top_n_tokens"),
    ({"truncate": 0}, "truncate"),
    ({"truncate": 1501}, "truncate"),
    ({"logit_bias": {"258": 1}}, "logit_bias"),
    ({"adapter_id": "mine"}, "adapter_id"),
    ({"grammar": {"type": "regex", "value": "("}}, "grammar"),
]
# Each row has parameters of a wrong type and the path in the message.
WRONG_SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"inputs": 5}, "`inputs`"),
    ({"inputs": None}, "`inputs`"),
    ({"parameters": {}}, "`inputs`"),
    ({"inputs": "hi", "parameters": [1]}, "`parameters`"),
    ({"inputs": "hi", "parameters": {"temperature": "hot"}}, "`parameters.temperature`"),
    ({"inputs": "hi", "parameters": {"max_new_tokens": 1.5}}, "`parameters.max_new_tokens`"),
    ({"inputs": "hi", "parameters": {"max_new_tokens": "5"}}, "`parameters.max_new_tokens`"),
    ({"inputs": "hi", "parameters": {"do_sample": 1}}, "`parameters.do_sample`"),
    ({"inputs": "hi", "parameters": {"stop": [1]}}, "`parameters.stop[0]`"),
    ({"inputs": "hi", "parameters": {"stop": 1}}, "`parameters.stop`"),
    ({"inputs": "hi", "parameters": {"top_k": True}}, "`parameters.top_k`"),
]
NOT_JSON = [
    b"",
    b"{",
    b'{"inputs": "hi"',
    b'{"inputs": "hi"} more',
    b"inputs=hi",
    b'{"inputs": NaN}',
    b'{"inputs": "\xff\xfe"}',
    b'{"inputs": "\\ud800"}',
    b'{"inputs": 5, "parameters": ',  # the shape is wrong too, but the syntax is checked first
    b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


def assert_error(answer: httpx.Response, status: int, error_type: str) -> str:
    """Return the message of an error, after a check of the error's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "error_type"}
    assert body["error_type"] == error_type
    assert isinstance(body["error"], str)
    assert body["error"]
    return body["error"]


def assert_serves(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    answer = client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 2}})
    assert answer.json() == {"generated_text": "ab"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("parameters", "word"), BROKEN_RULES, ids=str)
def test_broken_rule_is_422(client: httpx.Client, route: str, parameters: dict[str, Any], word: str) -> None:
    message = assert_error(
        client.post(route, json={"inputs": "hi", "parameters": parameters, "stream": True}), 422, "validation"
    )
    assert message.startswith("Input validation error: ")
    assert word in message


@pytest.mark.parametrize("route", ["/generate_stream", "/"])
@pytest.mark.parametrize("parameters", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}], ids=str)
def test_what_cannot_stream_is_422_only_when_streaming(
    client: httpx.Client, route: str, parameters: dict[str, Any]
) -> None:
    parameters = {**parameters, "max_new_tokens": 2}
    body = {"inputs": "hi", "parameters": parameters, "stream": True}
    assert_error(client.post(route, json=body), 422, "validation")
    assert client.post("/generate", json=body).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"best_of": 2}, "needs sampling"),
        ({"best_of": 2, "temperature": 0, "do_sample": True}, "needs sampling"),
        ({"best_of": 2, "do_sample": True, "seed": 3}, "seed"),
    ],
)
def test_best_of_rules(client: httpx.Client, parameters: dict[str, Any], word: str) -> None:
    message = assert_error(client.post("/generate", json={"inputs": "hi", "parameters": parameters}), 422, "validation")
    assert word in message


@pytest.mark.parametrize("route", ROUTES)
def test_empty_prompt_is_422(client: httpx.Client, route: str) -> None:
    message = assert_error(client.post(route, json={"inputs": "", "stream": True}), 422, "validation")
    assert "`inputs`" in message


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("text", "parameters", "words"),
    [
        (LONG, {}, ("3001", "1500")),
        (LONG, {"max_new_tokens": 5}, ("3001", "1500")),
        ("x" * 1499, {"max_new_tokens": 600}, ("1500", "600")),
        ("x" * 1500, {"max_new_tokens": 5}, ("1501", "--max-input-tokens")),
        ("x" * 30_000, {"max_new_tokens": 5}, ("1500", "--max-input-tokens")),
    ],
    ids=["no-limit", "both", "total", "input", "not-tokenised"],
)
def test_over_budget_is_422_with_the_words_that_frameworks_search(
    client: httpx.Client, route: str, text: str, parameters: dict[str, Any], words: tuple[str, ...]
) -> None:
    answer = client.post(route, json={"inputs": text, "parameters": parameters, "stream": True})
    message = assert_error(answer, 422, "validation")
    assert "`inputs` tokens + `max_new_tokens` must be <= 2048" in message
    assert any(word in message for word in words)


@pytest.mark.parametrize("route", [*ROUTES, "/tokenize"])
@pytest.mark.parametrize(("body", "path"), WRONG_SHAPES, ids=str)
def test_wrong_shape_is_422_with_the_path(client: httpx.Client, route: str, body: dict[str, Any], path: str) -> None:
    message = assert_error(client.post(route, json=body), 422, "validation")
    assert path in message


@pytest.mark.parametrize("route", [*ROUTES, "/tokenize"])
@pytest.mark.parametrize("body", [b"[]", b'"hi"', b"null", b"5"])
def test_body_that_is_no_object_is_422(client: httpx.Client, route: str, body: bytes) -> None:
    answer = client.post(route, content=body, headers={"content-type": "application/json"})
    assert "expected `object`" in assert_error(answer, 422, "validation")


def test_stream_field_counts_on_the_compatible_route_only(client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 1}, "stream": "yes"}
    assert_error(client.post("/", json=body), 422, "validation")
    assert client.post("/generate", json=body).status_code == 200


@pytest.mark.parametrize("route", [*ROUTES, "/tokenize"])
@pytest.mark.parametrize("body", NOT_JSON, ids=[str(body[:30]) for body in NOT_JSON])
def test_what_is_not_json_is_400(client: httpx.Client, route: str, body: bytes) -> None:
    answer = client.post(route, content=body, headers={"content-type": "application/json"})
    assert_error(answer, 400, "invalid_json")
    assert_serves(client)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_is_named(client: httpx.Client, encoding: str) -> None:
    text = '{"inputs": "hi", "parameters": {"max_new_tokens": 1}}'
    headers = {"content-type": "application/json"}
    answer = client.post("/generate", content=text.encode(encoding), headers=headers)
    error = assert_error(answer, 400, "invalid_json")
    assert error.endswith("; the body begins with a byte order mark: send UTF-8 without one")
    plain = client.post("/generate", content=text[:-1].encode(), headers=headers)
    assert "byte order" not in assert_error(plain, 400, "invalid_json")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"x": nested(500)}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": nested(500)}}}]},
        {"response_format": {"type": "json_schema", "value": {"x": nested(500)}}},
        {"documents": [{"x": nested(500)}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_values_that_nest_deep_are_400(client: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "nested too deep: more than 128 levels" in answer.json()["error"]["message"]


@pytest.mark.parametrize("route", [*(route for route in ROUTES if route != "/"), "/tokenize"])
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_other_content_type_is_415(client: httpx.Client, route: str, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = client.post(route, content=b'{"inputs":"hi"}', headers=headers)
    assert "application/json" in assert_error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
def test_json_content_types_are_taken(client: httpx.Client, content_type: str) -> None:
    body = json.dumps({"inputs": "hi", "parameters": {"max_new_tokens": 1}})
    assert client.post("/generate", content=body, headers={"content-type": content_type}).status_code == 200


@pytest.mark.parametrize("route", [*ROUTES, "/tokenize"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_ten_megabytes_are_413(client: httpx.Client, route: str, is_chunked: bool) -> None:
    body = json.dumps({"inputs": "x" * 10_000_000}).encode()
    content = iter([body[start : start + 65536] for start in range(0, len(body), 65536)]) if is_chunked else body
    answer = client.post(route, content=content, headers={"content-type": "application/json"})
    assert "2000000" in assert_error(answer, 413, "payload_too_large")
    assert_serves(client)


def test_client_that_writes_before_it_reads_sees_the_413(router: RunningRouter) -> None:
    connection = router.send("/generate", {"inputs": "x" * 10_000_000})
    data = b""
    while part := connection.recv(65536):
        data += part
    connection.close()
    assert data.startswith(b"HTTP/1.1 413 ")
    assert b"payload_too_large" in data


def test_client_that_asks_first_is_refused_without_sending(router: RunningRouter) -> None:
    connection = socket.create_connection(("127.0.0.1", router.port), 10)
    connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9999999\r\n\r\n")
    assert connection.recv(13) == b"HTTP/1.1 413 "
    connection.close()


def test_too_large_comes_before_the_content_type_and_that_before_syntax(client: httpx.Client) -> None:
    assert client.post("/generate", content=b"x" * 2_000_001).status_code == 413
    assert client.post("/generate", content=b"{").status_code == 415


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/nope", "/generate/", "/%2e%2e/etc/passwd", "/health//"])
def test_unknown_route_is_404(client: httpx.Client, method: str, path: str) -> None:
    assert_error(client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST, OPTIONS"),
        ("GET", "/generate_stream", "POST, OPTIONS"),
        ("GET", "/tokenize", "POST, OPTIONS"),
        ("PUT", "/generate", "POST, OPTIONS"),
        ("DELETE", "/", "GET, HEAD, POST, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/info", "GET, HEAD, OPTIONS"),
        ("PATCH", "/metrics", "GET, HEAD, OPTIONS"),
    ],
)
def test_wrong_method_is_405_with_those_allowed(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_a_token_that_the_model_lacks_is_422(tmp_path: Path) -> None:
    """Some tokenizers have more ids than their model.

    The shard would refuse a plan with such an id, and all requests would begin anew.
    """
    with RunningRouter(tmp_path, FakeShardOptions(vocab_size=END_ID)) as router, router.client() as client:
        message = assert_error(client.post("/generate", json={"inputs": f"hi{END}"}), 422, "validation")
        assert f"`inputs` must not hold `{END}`: it is token {END_ID}" in message
        for fields in ({}, {"echo": True, "logprobs": 1}, {"prompt": ["hi", f"{END}hi"]}):
            answer = client.post("/v1/completions", json={"prompt": f"hi{END}", "max_tokens": 2, **fields})
            assert answer.status_code == 422, answer.text
            assert answer.json()["error"]["param"] == "prompt"
        said = {"messages": [{"role": "user", "content": f"hi{END}"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=said).status_code == 200  # chat spells the token in letters
        assert_serves(client)


def test_first_failure_wins(client: httpx.Client) -> None:
    """The shape is checked before the parameters, and the parameters before the budget."""
    body = {"inputs": LONG, "parameters": {"temperature": -1, "top_k": "x"}}
    assert "top_k" in assert_error(client.post("/generate", json=body), 422, "validation")
    body = {"inputs": LONG, "parameters": {"temperature": -1, "top_k": 0}}
    assert "temperature" in assert_error(client.post("/generate", json=body), 422, "validation")
    body = {"inputs": LONG, "parameters": {"truncate": 5000}}
    assert "truncate" in assert_error(client.post("/generate", json=body), 422, "validation")


def test_server_serves_after_all_this(client: httpx.Client) -> None:
    assert_serves(client)
