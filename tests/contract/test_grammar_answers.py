"""Grammars and watermarks over HTTP: their fields at the shard, and the refusals before a permit is taken."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.speaking_router import speaking_router

ROUTES = {"whole": "/generate", "stream": "/generate_stream", "compat": "/"}
REFUSED: dict[str, tuple[Any, str]] = {
    "not an object": ("a+", "`grammar` must be an object"),
    "no type": ({"value": {}}, "`grammar.type` must be `json`"),
    "unknown type": ({"type": "ebnf", "value": "x"}, "found `ebnf`"),
    "no value": ({"type": "json"}, "`grammar.value` is missing"),
    "json of a number": ({"type": "json", "value": 5}, "must be a JSON schema, found a number"),
    "a string that is not JSON": ({"type": "json", "value": "{"}, "not JSON"),
    "json_schema without schema": ({"type": "json_schema", "value": {"name": "x"}}, '"schema"'),
    "a schema of the wrong type": ({"type": "json", "value": {"type": 7}}, "`type` must be one of"),
    "a reference that leads nowhere": ({"type": "json", "value": {"$ref": "http://127.0.0.1/x"}}, "leads nowhere"),
    "what nothing matches": ({"type": "json", "value": {"enum": []}}, "no text matches it"),
    "an open group": ({"type": "regex", "value": "(a"}, "unclosed group"),
    "a look-ahead": ({"type": "regex", "value": "(?=a)b"}, "looks at what stands around"),
    "too long": ({"type": "regex", "value": "a" * 140_000}, "at most 131072 bytes"),
}

# Blanks between the tokens of JSON are none, one space, or a new line with up to 32 spaces.
JSON_OPTIONS = r'"x-guidance":{"whitespace_pattern": "( |\\n[ \\t]{0,32})?", "lenient": false, "coerce_one_of": true}'


def ask(client: httpx.Client, route: str, **parameters: Any) -> httpx.Response:
    body: dict[str, Any] = {"inputs": "hi", "parameters": {"max_new_tokens": 2, **parameters}}
    if route == "/":
        body["stream"] = True
    return client.post(route, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("case", REFUSED)
def test_a_grammar_that_cannot_be_used_is_a_422_with_the_reason(client: httpx.Client, route: str, case: str) -> None:
    grammar, words = REFUSED[case]
    reply = ask(client, route, grammar=grammar)
    assert reply.status_code == 422
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.json()["error_type"] == "validation"
    assert reply.json()["error"].startswith("Input validation error: ")
    assert words in reply.json()["error"]


@pytest.mark.parametrize(
    ("grammar", "answer"),
    [
        ({"type": "json", "value": {"type": "null"}}, '%json {"type":"null",OPTIONS}'),
        ({"type": "json", "value": '{"type":"null"}'}, '%json {"type":"null",OPTIONS}'),
        ({"type": "json_object", "value": {}}, '%json {"type":"object",OPTIONS}'),
        ({"type": "json_object"}, '%json {"type":"object",OPTIONS}'),
        (
            {"type": "json_schema", "value": {"name": "n", "schema": {"type": "array"}}},
            '%json {"type":"array",OPTIONS}',
        ),
        ({"type": "regex", "value": "ä+"}, "/ä+/"),
    ],
)
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_a_grammar_reaches_the_shard(
    router: RunningRouter, client: httpx.Client, route: str, grammar: Any, answer: str
) -> None:
    assert ask(client, route, grammar=grammar, watermark=True).status_code == 200
    sent = router.shard.last_admit
    assert sent is not None
    assert sent.grammar.text == f"start: {answer.replace('OPTIONS', JSON_OPTIONS)}"
    assert sent.watermark


UNIQUE = {"type": "json", "value": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}


@pytest.mark.parametrize("text", ["[1, 1]", '{"a": 1, "a": 2}', "no JSON"])
def test_what_the_grammar_cannot_hold_is_checked_at_the_end(tmp_path: Path, text: str) -> None:
    """The fake shard enforces nothing, so wrong outputs come through to the check."""
    with speaking_router(tmp_path, text) as router, router.client() as client:
        body: dict[str, Any] = {"inputs": "hi", "parameters": {"max_new_tokens": 50, "grammar": UNIQUE}}
        reply = client.post("/generate", json=body)
        assert (reply.status_code, reply.json()["error_type"]) == (424, "generation")
        streamed = client.post("/generate_stream", json=body).text.strip().split("\n\n")
        assert json.loads(streamed[-1].removeprefix("data:"))["error_type"] == "generation"
        assert not any('"generated_text":"' in event for event in streamed)
        reply = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 50, "grammar": UNIQUE})
        assert reply.status_code == 424
        # The limit cut this one, which its finish reason tells.
        body["parameters"]["max_new_tokens"] = 2
        assert client.post("/generate", json=body).status_code == 200


def test_what_matches_is_answered(tmp_path: Path) -> None:
    with speaking_router(tmp_path, "[1, 2]") as router, router.client() as client:
        body = {"inputs": "hi", "parameters": {"max_new_tokens": 50, "grammar": UNIQUE}}
        assert client.post("/generate", json=body).json()["generated_text"] == "[1, 2]"
        assert '"generated_text":"[1, 2]"' in client.post("/generate_stream", json=body).text
        reply = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 50, "grammar": UNIQUE})
        assert reply.json()["choices"][0]["text"] == "[1, 2]"


LONG = "0.12345678901234567890"


@pytest.mark.parametrize("route", ["/generate", "/vertex", "/v1/completions"])
def test_numbers_reach_the_shard_as_they_were_written(router: RunningRouter, client: httpx.Client, route: str) -> None:
    grammar = f'{{"type": "json", "value": {{"enum": [9007199254740993, {LONG}]}}}}'
    native = f'{{"inputs": "hi", "parameters": {{"max_new_tokens": 2, "grammar": {grammar}}}}}'
    body = {
        "/generate": native,
        "/vertex": f'{{"instances": [{native}]}}',
        "/v1/completions": f'{{"prompt": "hi", "max_tokens": 2, "grammar": {grammar}}}',
    }[route]
    reply = client.post(route, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    sent = router.shard.last_admit
    assert sent is not None
    assert '"9007199254740993"' in sent.grammar.text
    assert f'"{LONG}"' in sent.grammar.text


def test_objects_are_open_where_the_flag_says_so(tmp_path: Path) -> None:
    grammar = {"type": "json", "value": {"properties": {"a": {"type": "null"}}}}
    for number, (settings, is_closed) in enumerate((({}, True), ({"open_objects": True}, False))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with RunningRouter(folder, **settings) as router, router.client() as client:
            assert ask(client, "/generate", grammar=grammar).status_code == 200
            sent = router.shard.last_admit
            assert sent is not None
            assert ('"additionalProperties":false' in sent.grammar.text) == is_closed


def test_null_is_no_grammar_and_no_watermark(router: RunningRouter, client: httpx.Client) -> None:
    assert ask(client, "/generate", grammar=None, watermark=None).status_code == 200
    sent = router.shard.last_admit
    assert sent is not None
    assert not sent.HasField("grammar")
    assert not sent.watermark


def test_a_bad_grammar_is_told_on_a_full_server_and_takes_no_permit(tmp_path: Path) -> None:
    options = FakeShardOptions(step_s=0.01)
    with RunningRouter(tmp_path, options, max_concurrent_requests=1) as router, router.client() as client:
        with router.send("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 500}}):
            router.wait_until_counts(running=1, waiting=0)
            assert ask(client, "/generate", grammar={"type": "regex", "value": "("}).status_code == 422
            assert ask(client, "/generate", grammar={"type": "regex", "value": "a"}).status_code == 429
        router.wait_until_free()


def test_a_server_without_grammar_support_says_so(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, disable_grammar_support=True) as router, router.client() as client:
        reply = ask(client, "/generate", grammar={"type": "regex", "value": "a"})
        assert (reply.status_code, reply.json()["error_type"]) == (422, "validation")
        assert "--disable-grammar-support" in reply.json()["error"]
        assert ask(client, "/generate").status_code == 200
