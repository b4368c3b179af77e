"""Response formats in chat completions, alone and beside tools, on a shard that answers as a model would."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.chat_calls import answer_of, ask, calls_of, chunks_of, error_of, schema_of, stream
from tests.fakes.speaking_router import speaking, speaking_router
from tests.fakes.weather_tools import ARGUMENTS, OUTPUTS, SCHEMA, TOOLS

CLOSED_SCHEMA = {**SCHEMA, "additionalProperties": False}  # as an object that says nothing of further keys is read
FORMATS: list[dict[str, Any]] = [
    {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}},
    {"type": "json", "value": SCHEMA},
    {"type": "json_object", "value": SCHEMA},
    {"type": "json", "value": json.dumps(SCHEMA)},
]


@pytest.mark.parametrize("form", FORMATS)
def test_response_formats_reach_the_shard(tmp_path: Path, form: dict[str, Any]) -> None:
    with speaking_router(tmp_path, ARGUMENTS) as router, router.client() as client:
        [choice] = answer_of(client, response_format=form, max_tokens=100)["choices"]
        assert choice["message"]["content"] == ARGUMENTS
        assert schema_of(router.shard.history[-1].last_admit.grammar.text) == CLOSED_SCHEMA


@pytest.mark.parametrize("text", ['{"city": 5}', "{}", "no JSON"])
def test_what_ends_by_itself_must_match_the_schema(tmp_path: Path, text: str) -> None:
    """The fake shard enforces nothing, so wrong answers come through to the check."""
    form = FORMATS[0]
    with speaking(tmp_path, text) as client:
        assert error_of(ask(client, response_format=form, max_tokens=100), 424)["type"] == "server_error"
        streamed = chunks_of(ask(client, response_format=form, max_tokens=100, stream=True))
        assert streamed[-1]["error_type"] == "generation"
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in streamed[:-1])
        # Cut answers are not checked, because their finish reason says that they are cut.
        [choice] = answer_of(client, response_format=form, max_tokens=1)["choices"]
        assert choice["finish_reason"] == "length"
        [choice] = answer_of(client, response_format=form, stop=text[1])["choices"]
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", None])
def test_tools_and_a_response_format_go_together(tmp_path: Path, template: str | None) -> None:
    """As at OpenAI: an answer is calls, or text in the format; a required call leaves no text for a format."""
    form = FORMATS[0]
    written = OUTPUTS["qwen2_5" if template else None].removeprefix("Let me see.\n")
    for folder, text in (("calls", written), ("content", ARGUMENTS), ("wrong", '{"city": 5}')):
        (tmp_path / folder).mkdir()
        with speaking_router(tmp_path / folder, text, template) as router, router.client() as client:
            fields = {"tools": TOOLS, "response_format": form, "max_tokens": 300}
            if folder == "wrong":
                assert error_of(ask(client, **fields), 424)["type"] == "server_error"
                continue
            [choice] = answer_of(client, **fields)["choices"]
            grammar = router.shard.history[-1].last_admit.grammar.text
            assert json.dumps(SCHEMA["properties"], separators=(",", ":")) in grammar
            assert "get_weather" in grammar
            assert ("think" in grammar) is (template == "qwen3")
            if folder == "content":
                assert choice["message"]["content"] == ARGUMENTS
                assert choice["finish_reason"] == "stop"
                continue
            calls = choice["message"]["tool_calls"]
            assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time"]
            assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
            assert [call["function"] for call in calls_of(stream(client, **fields))] == [
                call["function"] for call in calls
            ]
            answer_of(client, tool_choice="required", **fields)
            enforced = router.shard.history[-1].last_admit.grammar.text
            answer_of(client, tool_choice="required", tools=TOOLS, max_tokens=300)
            assert enforced == router.shard.history[-1].last_admit.grammar.text


def _with_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}


def test_strict_is_refused_where_the_grammar_cannot_hold_the_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"l": {"type": "array", "uniqueItems": True}}}
    with speaking(tmp_path, '{"l": [1, 1]}') as client:
        error = error_of(ask(client, response_format=_with_schema(schema, strict=True)), 422)
        assert "`uniqueItems`" in error["message"]
        assert error["param"] == "response_format"
        assert (
            error_of(ask(client, response_format=_with_schema(schema), max_tokens=100), 424)["type"] == "server_error"
        )
        tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
        error = error_of(ask(client, tools=[tool]), 422)
        assert "`uniqueItems`" in error["message"]
        assert error["param"] == "tools"


ACCOUNTS = (
    '{"type": "object", "properties": {"account": {"type": "integer", "enum": [1234567890123456789]}, '
    '"share": {"type": "number", "maximum": 0.12345678901234567890}}, "required": ["account"]}'
)


def test_numbers_of_tools_reach_the_shard_as_they_were_written(tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "pay", "arguments": {"account": NUMBER}}\n</tool_call>'
    body = (
        '{"messages": [{"role": "user", "content": "pay"}], "tool_choice": "required", "max_tokens": 200, '
        f'"tools": [{{"type": "function", "function": {{"name": "pay", "parameters": {ACCOUNTS}}}}}]}}'
    )
    headers = {"content-type": "application/json"}
    for number, status in (("1234567890123456789", 200), ("1234567890123456768", 424)):
        folder = tmp_path / number
        folder.mkdir()
        with speaking_router(folder, call.replace("NUMBER", number), "qwen2_5") as router, router.client() as client:
            reply = client.post("/v1/chat/completions", content=body, headers=headers)
            assert reply.status_code == status, reply.text
            assert '"1234567890123456789"' in router.shard.history[-1].last_admit.grammar.text
            if status == 200:
                [made] = reply.json()["choices"][0]["message"]["tool_calls"]
                assert number in made["function"]["arguments"]


def test_format_is_that_of_the_content_behind_the_reasoning(tmp_path: Path) -> None:
    """Reasoning need not match the format, and the grammar lets any reasoning through."""
    form = FORMATS[0]
    text = f"<think>\nHm {{.\n</think>\n\n{ARGUMENTS}"
    with speaking_router(tmp_path, text, "qwen3") as router, router.client() as client:
        [choice] = answer_of(client, response_format=form, max_tokens=100)["choices"]
        assert choice["message"]["content"] == ARGUMENTS
        assert choice["message"]["reasoning_content"] == "Hm {."
        admit = router.shard.history[-1].last_admit
        assert "think" in admit.grammar.text
        chunks = stream(client, response_format=form, max_tokens=100)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        # After a prompt that closes the reasoning, the grammar allows no reasoning.
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        answer_of(client, response_format=form, max_tokens=100, **off)
        assert schema_of(router.shard.history[-1].last_admit.grammar.text) == CLOSED_SCHEMA
    (tmp_path / "wrong").mkdir()
    with speaking(tmp_path / "wrong", f'<think>{ARGUMENTS}</think>{{"city": 5}}', "qwen3") as client:
        assert error_of(ask(client, response_format=form, max_tokens=100), 424)["type"] == "server_error"
        streamed = chunks_of(ask(client, response_format=form, max_tokens=100, stream=True))
        assert streamed[-1]["error_type"] == "generation"


def test_json_object_is_any_object(tmp_path: Path) -> None:
    with speaking(tmp_path, '{"any": [1, {"thing": null}]}') as client:
        assert ask(client, response_format={"type": "json_object"}, max_tokens=99).status_code == 200
        assert ask(client, response_format={"type": "text"}, max_tokens=99).status_code == 200
        assert ask(client, response_format=None, max_tokens=99).status_code == 200
        assert ask(client, response_format={"type": "regex", "value": "a+"}, max_tokens=99).status_code == 200
        error = error_of(ask(client, response_format={"type": "regex", "value": "(("}), 422)
        assert error["param"] == "response_format"
        assert "`response_format` does not compile" in error["message"]
