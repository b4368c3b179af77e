"""Fields of vLLM, sglang, llama.cpp and older OpenAI clients that bind the answer count, or are refused by name."""

import json
import logging
import re
from array import array
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_router.api.openai.answer_grammar import answer_grammar
from textmill_router.api.openai.chat_types import ChatBody

from tests.fakes.byte_tokenizer import BEGIN_ID
from tests.fakes.chat_calls import answer_of, error_of, stream
from tests.fakes.running_router import RunningRouter
from tests.fakes.speaking_router import speaking_router
from tests.fakes.weather_tools import OUTPUTS, SCHEMA, TOOLS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    COMPLETIONS: {"prompt": "hi", "max_tokens": 2},
}
JSON_OF_TGI = {"type": "json", "value": SCHEMA}
REGEX_OF_TGI = {"type": "regex", "value": "[a-z]+"}
ANY_OF_TGI = {"type": "json_object"}
# Fields, and TGI's grammar that means the same.
FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"structured_outputs": {"json": SCHEMA}}, JSON_OF_TGI),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, JSON_OF_TGI),
    ({"structured_outputs": {"json_object": True, "disable_any_whitespace": False}}, ANY_OF_TGI),
    ({"structured_outputs": {"regex": "[a-z]+"}}, REGEX_OF_TGI),
    ({"guided_json": SCHEMA}, JSON_OF_TGI),
    ({"guided_json": json.dumps(SCHEMA)}, JSON_OF_TGI),
    ({"guided_regex": "[a-z]+"}, REGEX_OF_TGI),
    ({"json_schema": SCHEMA, "grammar": ""}, JSON_OF_TGI),  # llama.cpp
    ({"json_schema": json.dumps(SCHEMA)}, JSON_OF_TGI),  # sglang
    ({"regex": "[a-z]+", "ebnf": None}, REGEX_OF_TGI),
    ({"grammar": JSON_OF_TGI}, JSON_OF_TGI),
    ({"grammar": REGEX_OF_TGI}, REGEX_OF_TGI),
]
FORMATS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of llama.cpp, Together and Fireworks
    ({"type": "json_object", "schema": SCHEMA}, JSON_OF_TGI),
    ({"type": "json_schema", "schema": SCHEMA}, JSON_OF_TGI),
]


def grammar_sent(router: RunningRouter, client: httpx.Client, route: str, **fields: Any) -> str:
    answer = client.post(route, json={**PROMPTS[route], **fields})
    assert answer.status_code == 200, answer.text
    assert router.shard.last_admit is not None
    text: str = router.shard.last_admit.grammar.text
    return text


@pytest.mark.parametrize(
    ("route", "fields", "grammar"),
    [
        (route, fields, grammar)
        for route in PROMPTS
        for fields, grammar in [*FORMS, *(({"response_format": value}, grammar) for value, grammar in FORMATS)]
    ],
)
def test_forms_of_other_servers_are_tgis_grammar(
    router: RunningRouter, client: httpx.Client, route: str, fields: dict[str, Any], grammar: dict[str, Any]
) -> None:
    wanted = grammar_sent(router, client, COMPLETIONS, grammar=grammar)
    assert wanted
    assert grammar_sent(router, client, route, **fields) == wanted


@pytest.mark.parametrize("route", PROMPTS)
def test_grammars_in_gbnf_bind_the_answer(router: RunningRouter, client: httpx.Client, route: str) -> None:
    """llama.cpp's `grammar`, sglang's `ebnf`, and both forms of vLLM are one grammar here."""
    text = 'root ::= "yes" | no\nno ::= "no"'
    found = {
        grammar_sent(router, client, route, **fields)
        for fields in (
            {"grammar": text},
            {"ebnf": text},
            {"guided_grammar": text},
            {"structured_outputs": {"grammar": text}},
        )
    }
    assert len(found) == 1
    [grammar] = found
    assert grammar.startswith("start: ")
    assert "/y/ /e/ /s/" in grammar


def test_schema_beside_the_type_is_one_of_objects(router: RunningRouter, client: httpx.Client) -> None:
    bare = {key: value for key, value in SCHEMA.items() if key != "type"}
    wanted = grammar_sent(router, client, COMPLETIONS, grammar=JSON_OF_TGI)
    for route in PROMPTS:
        response_format = {"type": "json_object", "schema": bare}
        assert grammar_sent(router, client, route, response_format=response_format) == wanted


@pytest.mark.parametrize("field", ["structured_outputs", "guided_choice"])
def test_choices_are_texts_and_nothing_else(field: str) -> None:
    choices = ["yes", "no (or a.b*)", "[x]|{y}^$\\", "東京", "a-b c#/"]
    value: Any = {"choice": choices} if field == "structured_outputs" else choices
    fields: dict[str, Any] = {field: value}
    asked = answer_grammar(ChatBody(messages=[], **fields))
    assert asked is not None
    for choice in choices:
        assert re.fullmatch(asked.grammar.text, choice)
        assert not re.fullmatch(asked.grammar.text, choice + "s")
    assert not re.fullmatch(asked.grammar.text, "no (or axb*)")


def test_choices_compile_in_the_library(router: RunningRouter, client: httpx.Client) -> None:
    assert grammar_sent(router, client, CHAT, guided_choice=["[x]|{y}^$\\", "a-b c#/", "ä\nb", "no (or a.b*)"])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *[
        (route, fields, param)
        for route in PROMPTS
        for fields, param in (
            ({"ebnf": 'start: "a"'}, "ebnf"),  # Lark
            ({"guided_grammar": "root ::= other"}, "guided_grammar"),
            ({"grammar": 'root ::= "a'}, "grammar"),
            ({"grammar": "root ::= " + "x" * 70_000}, "grammar"),
            ({"structured_outputs": {"grammar": 'rule ::= "a"'}}, "structured_outputs.grammar"),
            ({"ebnf": 5}, "ebnf"),
            ({"ebnf": "root ::= root"}, "ebnf"),
            ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
            (
                {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}},
                "structured_outputs.whitespace_pattern",
            ),
            ({"structured_outputs": {}}, "structured_outputs"),
            ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
            ({"structured_outputs": "x"}, "structured_outputs"),
            ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
            ({"guided_choice": []}, "guided_choice"),
            ({"guided_choice": ["a", 1]}, "guided_choice"),
            ({"guided_regex": 5}, "guided_regex"),
            ({"guided_json": 5}, "guided_json"),
            ({"regex": "("}, "regex"),
            ({"json_schema": {"type": 7}}, "json_schema"),
            ({"regex": "a", "json_schema": SCHEMA}, "regex"),
            ({"allowed_token_ids": []}, "allowed_token_ids"),
            ({"allowed_token_ids": [1, 258]}, "allowed_token_ids[1]"),
            ({"allowed_token_ids": ["x"]}, "allowed_token_ids[0]"),
            ({"bad_words": ["x", ""]}, "bad_words[1]"),
            ({"bad_words": ["x" * 101]}, "bad_words[0]"),
            ({"bad_words": ["x"] * 129}, "bad_words"),
            ({"bad_words": "x"}, "bad_words"),
            ({"bad_words": [5]}, "bad_words[0]"),
            ({"prompt_logprobs": -1}, "prompt_logprobs"),
            ({"prompt_logprobs": 21}, "prompt_logprobs"),
            ({"prompt_logprobs": True}, "prompt_logprobs"),
            ({"use_beam_search": True}, "use_beam_search"),
            ({"structural_tag": "{}"}, "structural_tag"),
            ({"custom_logit_processor": "x"}, "custom_logit_processor"),
            ({"skip_special_tokens": False}, "skip_special_tokens"),
            ({"stop_token_ids": [5, 258]}, "stop_token_ids[1]"),
            ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
            ({"stop_token_ids": [*range(257)]}, "stop_token_ids"),
        )
    ],
    (CHAT, {"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    (COMPLETIONS, {"response_format": {"type": "json_object"}, "grammar": REGEX_OF_TGI}, "grammar"),
    (COMPLETIONS, {"response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"echo": True}, "echo"),
    (CHAT, {"best_of": 2}, "best_of"),
    (CHAT, {"suffix": "x"}, "suffix"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    *[
        (route, {name: value}, name)
        for route in PROMPTS
        for name, value in (
            ("lora_path", "x"),
            ("max_new_tokens", 5),
            ("n_predict", 5),
            ("no_stop_trim", True),
            ("prompt_embeds", "AAAA"),
            ("repeat_penalty", 1.2),
        )
    ],
    *[
        (route, {"response_format": value}, f"response_format.{key}")
        for route in PROMPTS
        for value, key in (
            ({"type": "json_object", "json_schema": {"schema": SCHEMA}}, "json_schema"),
            ({"type": "json_schema", "json_schema": {"schema": SCHEMA}, "schema": SCHEMA}, "schema"),
            ({"type": "regex", "value": "a", "schema": SCHEMA}, "schema"),
            ({"type": "json", "schema": SCHEMA}, "schema"),
        )
    ],
    (CHAT, {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    (CHAT, {"tools": [*TOOLS, {"type": 5, "function": {"name": "f"}}]}, f"tools[{len(TOOLS)}].type"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f" * 201}}]}, "tools[0].function.name"),
    *[
        (CHAT, {"chat_template_kwargs": {name: []}}, f"chat_template_kwargs.{name}")
        for name in ("messages", "tools", "documents", "add_generation_prompt")
    ],
    (CHAT, {"reasoning_effort": 5}, "reasoning_effort"),
    (CHAT, {"chat_template": "{{ messages }}"}, "chat_template"),
    (CHAT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    (CHAT, {"functions": [{}]}, "functions[0].name"),
    (CHAT, {"functions": [{"name": ""}]}, "functions[0].name"),
    (CHAT, {"functions": [{"name": "f", "parameters": "x"}]}, "functions[0].parameters"),
    (CHAT, {"functions": [{"name": "f"}], "tools": TOOLS}, "tools"),
    (CHAT, {"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
    (CHAT, {"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
    (CHAT, {"function_call": {"name": "g"}}, "function_call"),
]


@pytest.mark.parametrize(("route", "fields", "param"), REFUSED)
def test_what_is_not_kept_is_refused_by_name(
    client: httpx.Client, route: str, fields: dict[str, Any], param: str
) -> None:
    for streams in (False, True):
        error = error_of(client.post(route, json={**PROMPTS[route], "stream": streams, **fields}), 422)
        assert error["param"] == param
        assert f"`{param.partition('[')[0].partition('.')[0]}" in error["message"]


TOP_OF_TGI = {
    "max_new_tokens": 4,
    "max_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.5,
    "stop": ["x"],
    "do_sample": False,
    "seed": 7,
    "details": True,
    "grammar": {"type": "regex", "value": "a"},
    "adapter_id": "poet",
    "return_full_text": False,
}


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/", "/invocations"])
@pytest.mark.parametrize("field", TOP_OF_TGI)
def test_parameter_beside_parameters_is_refused(client: httpx.Client, route: str, field: str) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2}}
    answer = client.post(route, json={**body, field: TOP_OF_TGI[field]})
    assert answer.status_code == 422
    place = "max_new_tokens" if field == "max_tokens" else field
    wanted = f"`{field}` is not supported: its place is `parameters.{place}`; leave it out"
    assert answer.json() == {"error": f"Input validation error: {wanted}", "error_type": "validation"}
    assert client.post(route, json={**body, field: None}).status_code == 200


@pytest.mark.parametrize("route", PROMPTS)
def test_fields_that_ask_for_nothing_are_taken(client: httpx.Client, route: str) -> None:
    nothing: dict[str, Any] = {
        "bad_words": [],
        "allowed_token_ids": None,
        "skip_special_tokens": True,
        "use_beam_search": False,
        "modalities": ["text"],
    }
    answer = client.post(route, json={**PROMPTS[route], **nothing, "ebnf": "", "stop_token_ids": [], "echo": False})
    assert answer.status_code == 200


# What vllm-router 0.1.17 makes of each body that it hands on, as seen on its wire.
ADDED_BY_VLLM_ROUTER: dict[str, dict[str, Any]] = {
    COMPLETIONS: {
        "stream": False,
        "echo": False,
        "no_stop_trim": False,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "return_hidden_states": False,
    },
    CHAT: {
        "stream": False,
        "logprobs": False,
        "no_stop_trim": False,
        "ignore_eos": False,
        "continue_final_message": False,
        "skip_special_tokens": True,
        "separate_reasoning": True,
        "stream_reasoning": True,
        "return_hidden_states": False,
        "include_reasoning": True,
    },
}


@pytest.mark.parametrize("suffix", ["", "/render"])
@pytest.mark.parametrize("route", PROMPTS)
def test_bodies_that_vllm_router_has_filled_are_taken(client: httpx.Client, route: str, suffix: str) -> None:
    answer = client.post(route + suffix, json={**PROMPTS[route], **ADDED_BY_VLLM_ROUTER[route]})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("route", PROMPTS)
def test_stop_token_ids_reach_the_shard(router: RunningRouter, client: httpx.Client, route: str) -> None:
    assert client.post(route, json={**PROMPTS[route], "n": 2, "stop_token_ids": [7, 9, 7]}).status_code == 200
    assert router.shard.last_admit is not None
    assert list(array("I", router.shard.last_admit.stop_ids)) == [7, 9]


@pytest.mark.parametrize("route", PROMPTS)
def test_allowed_and_bad_tokens_reach_the_shard(router: RunningRouter, client: httpx.Client, route: str) -> None:
    body = {**PROMPTS[route], "n": 2, "allowed_token_ids": [7, 9, 7], "bad_words": ["ab", " ab", "\n"]}
    assert client.post(route, json=body).status_code == 200
    assert router.shard.last_admit is not None
    sampling = router.shard.last_admit.sampling
    assert list(array("I", sampling.allowed_ids)) == [7, 9]
    assert [bytes([*array("I", one)]) for one in sampling.bad_sequences] == [b"ab", b" ab", b"\n", b" \n"]
    assert client.post(route, json=PROMPTS[route]).status_code == 200
    assert router.shard.last_admit.sampling.allowed_ids == b""
    assert not router.shard.last_admit.sampling.bad_sequences


@pytest.mark.parametrize("route", PROMPTS)
def test_prompt_logprobs_have_the_form_of_vllm(router: RunningRouter, client: httpx.Client, route: str) -> None:
    """vLLM's documented form: null for the first token, then for each token a map from ids to number, rank and text."""
    body = {**PROMPTS[route], "n": 2, "prompt_logprobs": 3, "return_token_ids": True}
    answer = client.post(route, json=body).json()
    for holder in [answer] if route == CHAT else answer["choices"]:
        first, *others = holder["prompt_logprobs"]
        assert first is None
        for token_id, entry in zip(holder["prompt_token_ids"][1:], others, strict=True):
            assert entry[str(token_id)] == {"logprob": -1.0, "rank": None, "decoded_token": chr(token_id)}
    assert router.shard.last_admit is not None
    assert "prompt_logprobs" not in client.post(route, json=PROMPTS[route]).text


@pytest.mark.parametrize("route", PROMPTS)
def test_prompt_logprobs_are_never_streamed(client: httpx.Client, route: str) -> None:
    error = error_of(client.post(route, json={**PROMPTS[route], "stream": True, "prompt_logprobs": 0}), 422)
    assert (error["param"], "streaming" in error["message"]) == ("prompt_logprobs", True)


def test_prompt_logprobs_and_echoed_ones_exclude_each_other(client: httpx.Client) -> None:
    body = {**PROMPTS[COMPLETIONS], "echo": True, "logprobs": 1, "prompt_logprobs": 1}
    assert error_of(client.post(COMPLETIONS, json=body), 422)["param"] == "prompt_logprobs"


@pytest.mark.parametrize("route", PROMPTS)
def test_stop_token_id_ends_the_answer_before_it(client: httpx.Client, route: str) -> None:
    body = {**PROMPTS[route], "max_tokens": 9, "stop_token_ids": [ord("c"), ord("e")]}
    [choice] = client.post(route, json=body).json()["choices"]
    assert (choice["text"] if route == COMPLETIONS else choice["message"]["content"]) == "ab"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("route", PROMPTS)
def test_truncate_prompt_tokens_keeps_the_last_tokens(router: RunningRouter, client: httpx.Client, route: str) -> None:
    usage = client.post(route, json={**PROMPTS[route], "truncate_prompt_tokens": 2}).json()["usage"]
    assert usage["prompt_tokens"] == 2
    assert router.shard.last_admit is not None
    assert bytes([*array("I", router.shard.last_admit.prompt_ids)]) == (b": " if route == CHAT else b"hi")
    long = {"prompt": "x" * 5000} if route == COMPLETIONS else {"messages": [{"role": "user", "content": "x" * 5000}]}
    answer = client.post(route, json={**PROMPTS[route], **long, "truncate_prompt_tokens": 9})
    assert answer.json()["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize("route", PROMPTS)
def test_continuous_usage_counts_in_each_chunk(client: httpx.Client, route: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**PROMPTS[route], "max_tokens": 3, "stream": True, "stream_options": options}
    events = [json.loads(line[6:]) for line in client.post(route, json=body).text.split("\n\n")[:-2]]
    final = events[-1]["usage"]
    for event in events:
        usage = event["usage"]
        assert usage["prompt_tokens"] == final["prompt_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    counts = [event["usage"]["completion_tokens"] for event in events if event["choices"]]
    assert counts == ([1, 1, 2, 3, 3] if route == CHAT else [1, 2, 3, 3])
    plain = {**body, "stream_options": {"continuous_usage_stats": True}}
    assert "usage" not in client.post(route, json=plain).text


@pytest.mark.parametrize("route", PROMPTS)
def test_token_ids_of_the_answer_and_the_prompt(client: httpx.Client, route: str) -> None:
    """As in vLLM: those of the prompt stand beside the choices of a chat, and in the choices of a completion."""
    body = {**PROMPTS[route], "max_tokens": 3, "return_token_ids": True}
    of_prompt = {key: value for key, value in PROMPTS[route].items() if key != "max_tokens"}
    prompt_ids = client.post("/tokenize", json=of_prompt).json()["tokens"]
    answer = client.post(route, json=body).json()
    [choice] = answer["choices"]
    assert choice["token_ids"] == [*b"abc"]
    assert (answer if route == CHAT else choice)["prompt_token_ids"] == prompt_ids
    streamed = client.post(route, json={**body, "stream": True, "stop": ["zz", "bcx"]}).text
    events = [json.loads(line[6:]) for line in streamed.split("\n\n")[:-2]]
    choices = [event["choices"][0] for event in events]
    assert [one for part in choices for one in part.get("token_ids", [])] == [*b"abc"]
    assert [one["prompt_token_ids"] for one in [*events, *choices] if "prompt_token_ids" in one] == [prompt_ids]
    plain = client.post(route, json=PROMPTS[route]).text
    assert "token_ids" not in plain


def test_no_token_ids_of_a_token_that_is_not_shown(client: httpx.Client) -> None:
    body = {"prompt": "hi", "max_tokens": 0, "echo": True, "return_token_ids": True}
    [choice] = client.post(COMPLETIONS, json=body).json()["choices"]
    assert choice["token_ids"] == []
    events = client.post(COMPLETIONS, json={**body, "stream": True}).text
    assert '"token_ids"' not in events


@pytest.mark.parametrize("route", PROMPTS)
def test_stop_reason_is_the_stop_string_that_ended_the_choice(client: httpx.Client, route: str) -> None:
    """vLLM: null where none did."""
    for stop, reason in ((["zz", "cd"], "cd"), ("de", "de"), (["zz"], None)):
        body = {**PROMPTS[route], "max_tokens": 5, "stop": stop}
        [choice] = client.post(route, json=body).json()["choices"]
        assert choice["stop_reason"] == reason
        assert choice["finish_reason"] == ("length" if reason is None else "stop")
        streamed = client.post(route, json={**body, "stream": True}).text
        choices = [json.loads(line[6:])["choices"][0] for line in streamed.split("\n\n")[:-2]]
        assert choices[-1]["stop_reason"] == reason
        assert not any("stop_reason" in one for one in choices[:-1])
    assert "stop_reason" not in client.post(route, json=PROMPTS[route]).text


def test_reasoning_effort_is_a_variable_of_the_template(tmp_path: Path) -> None:
    config = {"chat_template": "{{ reasoning_effort | default('medium') }}:{{ messages[0].content }}"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (
        RunningRouter(tmp_path, tokenizer_config_path=str(tmp_path / "config.json")) as router,
        router.client() as client,
    ):
        for fields, effort in (
            ({}, "medium"),
            ({"reasoning_effort": "low"}, "low"),
            ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}, "high"),
        ):
            answer = client.post("/chat_tokenize", json={"messages": PROMPTS[CHAT]["messages"], **fields})
            assert answer.json()["templated_text"] == f"{effort}:hi"


def test_functions_are_answered_by_a_function_call(tmp_path: Path) -> None:
    functions = [tool["function"] for tool in TOOLS]
    with speaking_router(tmp_path, OUTPUTS["qwen2_5"], "qwen2_5") as router, router.client() as client:
        for choice in ("auto", None, {"name": "get_weather"}):
            fields = {"functions": functions, "function_call": choice, "max_tokens": 300}
            [answer] = answer_of(client, **fields)["choices"]
            call = answer["message"]["function_call"]
            assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "東京"})
            assert "tool_calls" not in answer["message"]
            assert answer["finish_reason"] == "function_call"
            chunks = stream(client, **fields)
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
            assert parts[0] == {"name": "get_weather", "arguments": ""}
            assert "".join(part["arguments"] for part in parts) == call["arguments"]
            assert not any("tool_calls" in delta for delta in deltas)
            assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
        [answer] = answer_of(client, functions=functions, function_call="none", max_tokens=300)["choices"]
        assert "function_call" not in answer["message"]


def test_history_of_functions_is_that_of_tools(tmp_path: Path) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    ask_first = {"role": "user", "content": "Weather?"}
    old = [
        ask_first,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "get_weather", "content": "rain"},
    ]
    new = [
        ask_first,
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "get_weather", "content": "rain"},
    ]
    with speaking_router(tmp_path, "ok", "qwen2_5") as router, router.client() as client:
        shown = [
            client.post("/chat_tokenize", json={"messages": messages, **tools}).json()["templated_text"]
            for messages, tools in ((old, {"functions": [TOOLS[0]["function"]]}), (new, {"tools": TOOLS[:1]}))
        ]
    assert shown[0] == shown[1]
    assert "get_weather" in shown[0]
    assert "rain" in shown[0]


UNKNOWN: list[tuple[str, dict[str, Any], list[str]]] = [
    *[
        (route, {**body, "unheard": 1, "a text of a user": 2, "top_p": 0.5}, ["unheard"])
        for route, body in PROMPTS.items()
    ],
    (
        CHAT,
        {**PROMPTS[CHAT], "stream": True, "stream_options": {"include_usage": True, "chunked": 1}},
        ["stream_options.chunked"],
    ),
    *[
        (
            route,
            {"inputs": "hi", "parameters": {"max_new_tokens": 1, "n_beams": 2, "a b": 1}, "options": {"fast": True}},
            ["options.fast", "parameters.n_beams"],
        )
        for route in ("/generate", "/generate_stream", "/")
    ],
]


@pytest.mark.parametrize(("route", "body", "names"), UNKNOWN, ids=str)
def test_unknown_field_is_logged_once(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, route: str, body: dict[str, Any], names: list[str]
) -> None:
    with caplog.at_level(logging.INFO, "textmill_router"):
        for _ in range(2):
            assert client.post(route, json=body).status_code == 200
    lines = [vars(record) for record in caplog.records if hasattr(record, "field")]
    assert sorted((line["field"], line["route"]) for line in lines) == [(name, route) for name in names]


@pytest.mark.parametrize("route", PROMPTS)
def test_do_sample_says_whether_tokens_are_drawn(router: RunningRouter, client: httpx.Client, route: str) -> None:
    """TGI's rule: a number that asks for sampling counts beside `do_sample: false`; temperature 0 is greedy."""
    for fields, is_drawn in (
        ({}, True),
        ({"do_sample": False}, False),
        ({"do_sample": False, "temperature": 0.5}, True),
        ({"do_sample": True}, True),
        ({"do_sample": True, "temperature": 0}, False),
    ):
        assert client.post(route, json={**PROMPTS[route], **fields}).status_code == 200
        assert router.shard.last_admit is not None
        assert router.shard.last_admit.sampling.do_sample is is_drawn, fields


@pytest.mark.parametrize("route", PROMPTS)
def test_stop_string_may_stay_in_the_answer(client: httpx.Client, route: str) -> None:
    for keeps, text in ((True, "abcd"), (False, "ab"), (None, "ab")):
        body = {**PROMPTS[route], "max_tokens": 9, "stop": ["cd"], "include_stop_str_in_output": keeps}
        [choice] = client.post(route, json=body).json()["choices"]
        assert (choice["text"] if route == COMPLETIONS else choice["message"]["content"]) == text
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "cd")
        streamed = client.post(route, json={**body, "stream": True}).text
        choices = [json.loads(line[6:])["choices"][0] for line in streamed.split("\n\n")[:-2]]
        parts = [one["text"] if route == COMPLETIONS else one["delta"].get("content") or "" for one in choices]
        assert "".join(parts) == text


@pytest.mark.parametrize("route", PROMPTS)
def test_special_tokens_around_the_prompt_are_the_callers_choice(
    router: RunningRouter, client: httpx.Client, route: str
) -> None:
    """vLLM adds the tokens to completions, and to chats only if asked; the byte tokenizer begins prompts with one."""
    counts = {}
    for adds in (True, False, None):
        answer = client.post(route, json={**PROMPTS[route], "add_special_tokens": adds})
        assert router.shard.last_admit is not None
        ids = list(array("I", router.shard.last_admit.prompt_ids))
        counts[adds] = answer.json()["usage"]["prompt_tokens"]
        assert counts[adds] == len(ids)
        if route == COMPLETIONS:
            assert ids == [*([BEGIN_ID] if adds is not False else []), *b"hi"]
    assert counts[True] == counts[False] + 1
    assert counts[None] == counts[route == COMPLETIONS]
