"""Fields inside `parameters` of TGI's routes that would bind the answer on another route or server."""

import httpx
import pytest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guided_regex", "zz"),
        ("guided_json", SCHEMA),
        ("structured_outputs", {"regex": "a"}),
        ("response_format", {"type": "json_object"}),
        ("stop_token_ids", [5]),
        ("bad_words", ["a"]),
        ("max_tokens", 5),
        ("stop_sequences", ["a"]),
    ],
)
def test_fields_of_other_dialects_that_would_bind_are_refused_inside_parameters(
    client: httpx.Client, route: str, name: str, value: object
) -> None:
    for inputs in ("hi", "hi " * 30_000):  # long bodies are not searched for the names that only the log tells
        answer = client.post(route, json={"inputs": inputs, "parameters": {"max_new_tokens": 2, name: value}})
        assert answer.status_code == 422, answer.text
        assert answer.json()["error_type"] == "validation"
        assert f"`parameters.{name}` is not supported" in answer.json()["error"]
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2, name: None}}
    assert client.post(route, json=body).status_code == 200
