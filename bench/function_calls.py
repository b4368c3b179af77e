"""Asks a running server for the calls of the Berkeley function-calling leaderboard, with `tool_choice: required`.

A folder holds the files of the leaderboard (`bfcl_eval/data` of the repository ShishirPatil/gorilla). The first turn of
each question is asked. Whether the model chose well is not looked at, only whether each call is valid: its name is that
of a tool, and its arguments are a JSON object that matches the schema of the tool.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

CATEGORIES = ("simple_python", "multiple")
# The files name types as Python, Java and JavaScript do.
TYPES = {
    "object": ("dict", "hashmap", "hashtable", "object"),
    "array": ("array", "arraylist", "list", "queue", "stack", "tuple"),
    "integer": ("bigint", "byte", "integer", "long", "short"),
    "number": ("double", "float", "number"),
    "boolean": ("bool", "boolean"),
    "string": ("any", "char", "string"),
}
JSON_TYPE_OF = {word: kind for kind, words in TYPES.items() for word in words}
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its tools in OpenAI's form."""

    name: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]

    @property
    def schemas(self) -> dict[str, Any]:
        """The schemas of the arguments, by the names of the tools."""
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}


def questions_of(path: Path) -> Iterator[Question]:
    """The questions of one file, a line each."""
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        yield Question(entry["id"], entry["question"][0], [tool_of(function) for function in entry["function"]])


def tool_of(function: dict[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form. OpenAI's names have no dots, and its types are those of JSON Schema."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", function["name"])[:64]
    shown = {"name": name, "description": function["description"], "parameters": schema_of(function["parameters"])}
    return {"type": "function", "function": shown}


def schema_of(written: Any) -> Any:
    """The schema with types of JSON Schema."""
    if not isinstance(written, dict):
        return written
    result = {key: schema_of(value) for key, value in written.items() if key not in ("type", "properties")}
    kind = JSON_TYPE_OF.get(str(written.get("type")).lower())
    if kind is not None:
        result["type"] = kind
    if "properties" in written:
        result["properties"] = {key: schema_of(value) for key, value in written["properties"].items()}
    return result


@dataclass(frozen=True, slots=True)
class Verdict:
    """The kind of an answer or of a call. `fault` has the words that differ among the faults of a kind."""

    kind: str
    fault: str = ""


def verdicts(question: Question, client: httpx.Client, parameters: dict[str, float]) -> list[Verdict]:
    """The verdicts on one answer and on its calls."""
    body = {"messages": question.messages, "tools": question.tools, "tool_choice": "required", **parameters}
    answer = client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return [Verdict(f"answers with status {answer.status_code}", answer.text[:300])]
    [choice] = answer.json()["choices"]
    calls = choice["message"].get("tool_calls") or []
    if choice["finish_reason"] == "length":
        return [Verdict("answers that the limit of tokens cut")]
    if choice["finish_reason"] != "tool_calls" or not calls:
        return [Verdict("answers without a call", json.dumps(choice)[:300])]
    return [Verdict("answers with calls"), *(verdict(call["function"], question.schemas) for call in calls)]


def verdict(call: dict[str, str], schemas: dict[str, Any]) -> Verdict:
    """The verdict on one call."""
    if call["name"] not in schemas:
        return Verdict("calls of no tool", call["name"])
    try:
        Draft202012Validator(schemas[call["name"]]).validate(json.loads(call["arguments"]))
    except ValueError as error:
        return Verdict("calls whose arguments are no JSON", f"{error}: {call['arguments'][:300]}")
    except ValidationError as error:
        return Verdict("calls that break their schema", f"{error.json_path}: {error.message[:300]}")
    return Verdict("valid calls")


def main() -> int:
    """Print the faults, then the counts. Exit code 1 if there is a fault of the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument(
        "--category", action="append", help=f"of the files' names, by default {' and '.join(CATEGORIES)}"
    )
    parser.add_argument("--limit", type=int, help="so many questions of each category")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="1 for a model with random weights")
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    parameters = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature, "seed": 1}
    counts, has_fault = Counter[str](), False
    with (
        httpx.Client(base_url=arguments.url, timeout=LIMIT_S) as client,
        ThreadPoolExecutor(arguments.concurrency) as pool,
    ):
        for category in arguments.category or CATEGORIES:
            questions = list(questions_of(arguments.folder / f"BFCL_v4_{category}.json"))[: arguments.limit]
            answers = pool.map(lambda question: verdicts(question, client, parameters), questions)
            for question, found in zip(questions, answers, strict=True):
                counts.update(f"{category}: {said.kind}" for said in found)
                for said in found:
                    if said.fault:
                        has_fault = True
                        print(f"{question.name}: {said.kind}: {said.fault}")
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    return int(has_fault)


if __name__ == "__main__":
    sys.exit(main())
