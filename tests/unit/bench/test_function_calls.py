"""The leaderboard's tools in OpenAI's form, and the verdicts on calls."""

import json
from pathlib import Path

import httpx
import pytest

from bench.function_calls import Question, Verdict, questions_of, schema_of, verdict, verdicts

ENTRY = {
    "id": "simple_0",
    "question": [[{"role": "user", "content": "Rotate."}], [{"role": "user", "content": "Again."}]],
    "function": [
        {
            "name": "shape.rotate",
            "description": "Rotates.",
            "parameters": {
                "type": "dict",
                "properties": {
                    "type": {"type": "String", "description": "of the shape"},
                    "angle": {"type": "float"},
                    "points": {"type": "tuple", "items": {"type": "integer"}},
                    "more": {"type": ""},
                },
                "required": ["type"],
            },
        }
    ],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "of the shape"},
        "angle": {"type": "number"},
        "points": {"type": "array", "items": {"type": "integer"}},
        "more": {},
    },
    "required": ["type"],
}


@pytest.fixture
def question(tmp_path: Path) -> Question:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(ENTRY) + "\n")
    [found] = questions_of(path)
    return found


def test_tools_have_names_and_types_of_openai(question: Question) -> None:
    assert question.messages == ENTRY["question"][0]
    assert question.schemas == {"shape_rotate": SCHEMA}
    assert schema_of({"type": "HashMap"}) == {"type": "object"}


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "is_fault"),
    [
        ("shape_rotate", '{"type": "square", "angle": 90}', "valid calls", False),
        ("shape_rotate", "{}", "calls that break their schema", True),
        ("shape_rotate", '{"type": "sq', "calls whose arguments are no JSON", True),
        ("rotate", "{}", "calls of no tool", True),
    ],
)
def test_a_call_is_valid_if_its_tool_and_arguments_are(name: str, arguments: str, kind: str, is_fault: bool) -> None:
    found = verdict({"name": name, "arguments": arguments}, {"shape_rotate": SCHEMA})
    assert (found.kind, bool(found.fault)) == (kind, is_fault)


@pytest.mark.parametrize(
    ("status", "choice", "kinds"),
    [
        (500, {}, ["answers with status 500"]),
        (200, {"finish_reason": "length", "message": {}}, ["answers that the limit of tokens cut"]),
        (200, {"finish_reason": "stop", "message": {"content": "so"}}, ["answers without a call"]),
        (
            200,
            {
                "finish_reason": "tool_calls",
                "message": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            },
            ["answers with calls", "calls of no tool"],
        ),
    ],
)
def test_an_answer_is_judged_by_status_finish_reason_and_calls(
    question: Question, status: int, choice: dict[str, object], kinds: list[str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["tool_choice"] == "required"
        return httpx.Response(status, json={"choices": [choice]})

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server") as client:
        found: list[Verdict] = verdicts(question, client, {"max_tokens": 5})
    assert [said.kind for said in found] == kinds
