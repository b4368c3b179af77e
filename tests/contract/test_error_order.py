"""The first fault of a call counts, in the order shape, rules, grammar, permit, template, tokens."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
# A template of a model without reasoning and one with; both refuse a conversation that ends with "no".
PLAIN = "{% if messages[-1].content == 'no' %}{{ raise_exception('not this') }}{% endif %}{{ messages[-1].content }}"
THINKING = PLAIN + "<think></think>"
NO_SCHEMA = {"type": "object", "properties": {"a": {"type": 7}}}


def tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **more}}


SHAPE: dict[str, dict[str, Any]] = {CHAT: {"n": "x"}, COMPLETIONS: {"n": "x"}, GENERATE: {"parameters": {"seed": "x"}}}
RULE: dict[str, dict[str, Any]] = {CHAT: {"top_p": 2}, COMPLETIONS: {"top_p": 2}, GENERATE: {"top_p": 2}}
# Grammars that do not compile, and the name that the refusal has for each.
BAD_GRAMMARS: list[tuple[str, dict[str, Any], str]] = [
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": NO_SCHEMA}}},
        "response_format",
    ),
    (CHAT, {"response_format": {"type": "regex", "value": "(("}}, "response_format"),
    (CHAT, {"tools": [tool(NO_SCHEMA)], "tool_choice": "required"}, "tools"),
    (CHAT, {"tools": [tool(NO_SCHEMA, strict=True)]}, "tools"),
    (CHAT, {"tools": [tool({"type": "array"})], "tool_choice": "f"}, "tools"),
    (COMPLETIONS, {"grammar": {"type": "regex", "value": "(("}}, "grammar"),
    (GENERATE, {"grammar": {"type": "regex", "value": "(("}}, "grammar"),
]
GOOD_GRAMMARS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"response_format": {"type": "json_object"}}),
    (CHAT, {"tools": [tool({"type": "object"})], "tool_choice": "required"}),
    (COMPLETIONS, {"grammar": {"type": "regex", "value": "a"}}),
    (GENERATE, {"grammar": {"type": "regex", "value": "a"}}),
]


def ask(client: httpx.Client, route: str, fields: dict[str, Any], prompt: str = "hi") -> httpx.Response:
    if route == GENERATE:
        body: dict[str, Any] = {"inputs": prompt, "parameters": {"max_new_tokens": 2, **fields}}
        if "parameters" in fields:
            body["parameters"] = fields["parameters"] | {k: v for k, v in fields.items() if k != "parameters"}
    elif route == CHAT:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 2, **fields}
    else:
        body = {"prompt": prompt, "max_tokens": 2, **fields}
    return client.post(route, json=body)


def message_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@contextmanager
def small_router(folder: Path, template: str) -> Iterator[RunningRouter]:
    """Run a router with one permit, a window of 200 tokens and a slow shard."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({"chat_template": template}))
    settings: dict[str, Any] = {"max_total_tokens": 200, "max_input_tokens": 100, "tokenizer_config_path": str(path)}
    with RunningRouter(folder, FakeShardOptions(step_s=0.05), max_concurrent_requests=1, **settings) as router:
        yield router


@contextmanager
def all_permits_taken(router: RunningRouter) -> Iterator[None]:
    with router.send(GENERATE, {"inputs": "x", "parameters": {"max_new_tokens": 190}}):
        router.wait_until_counts(running=1, waiting=0)
        yield
    router.wait_until_free()


@pytest.mark.parametrize("template", [PLAIN, THINKING], ids=["plain", "thinking"])
def test_a_grammar_that_does_not_compile_is_told_on_a_full_server(tmp_path: Path, template: str) -> None:
    with small_router(tmp_path, template) as router, router.client() as client:
        # The compilers start slowly, so every grammar comes once before the permits are taken.
        refused = {json.dumps(case): message_of(ask(client, *case[:2]), 422) for case in BAD_GRAMMARS}
        with all_permits_taken(router):
            for case in BAD_GRAMMARS:
                route, fields, name = case
                answer = ask(client, route, fields)
                assert message_of(answer, 422) == refused[json.dumps(case)]
                if route != GENERATE:
                    assert answer.json()["error"]["param"] == name
            for route, fields in GOOD_GRAMMARS:
                assert ask(client, route, fields).status_code == 429
                assert ask(client, route, fields | {"stream": True}).status_code == 429


def test_a_grammar_is_told_before_the_template_and_the_length(tmp_path: Path) -> None:
    with small_router(tmp_path, THINKING) as router, router.client() as client:
        for route, fields, name in BAD_GRAMMARS:
            for prompt in ("no", "x" * 150):
                answer = ask(client, route, fields, prompt)
                message = message_of(answer, 422)
                assert "not this" not in message
                assert "100" not in message  # the limit of the prompt
                if route != GENERATE:
                    assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, GENERATE])
def test_shape_and_rules_come_first(tmp_path: Path, route: str) -> None:
    grammar = next(fields for of_route, fields, _ in BAD_GRAMMARS if of_route == route)
    with small_router(tmp_path, PLAIN) as router, router.client() as client, all_permits_taken(router):
        assert "expected `int" in message_of(ask(client, route, {**grammar, **RULE[route], **SHAPE[route]}), 422)
        assert "`top_p`" in message_of(ask(client, route, {**grammar, **RULE[route]}, "x" * 150), 422)


def test_the_permit_comes_before_the_template_and_that_before_the_length(tmp_path: Path) -> None:
    with small_router(tmp_path, PLAIN) as router, router.client() as client:
        long_and_refused = {"messages": [{"role": "user", "content": "x" * 150}, {"role": "user", "content": "no"}]}
        asks: list[Callable[[], httpx.Response]] = [
            lambda: ask(client, CHAT, {}, "no"),
            lambda: ask(client, CHAT, long_and_refused),
            lambda: ask(client, CHAT, {}, "x" * 150),
            lambda: ask(client, COMPLETIONS, {}, "x" * 150),
            lambda: ask(client, GENERATE, {}, "x" * 150),
        ]
        with all_permits_taken(router):
            assert [one().status_code for one in asks] == [429] * len(asks)
        messages = [message_of(one(), 422) for one in asks]
        assert all("not this" in message for message in messages[:2])
        assert all("100" in message or "200" in message for message in messages[2:])


def test_reasoning_that_the_prompt_has_opened_is_enforced_to_its_end(tmp_path: Path) -> None:
    """The shard gets the grammar that fits the rendered prompt, not the one that was compiled before."""
    form = {"response_format": {"type": "json_object"}}
    with small_router(tmp_path, "<think>{# </think> #}") as router, router.client() as client:
        assert ask(client, CHAT, form).status_code in (200, 424)
        sent = router.shard.last_admit
        assert sent is not None
        start = sent.grammar.text.partition("\n")[0]
        assert start == "start: thought answer"
