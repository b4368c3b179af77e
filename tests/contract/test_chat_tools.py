"""Tools in chat completions, on a shard that answers as a model of each format would."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.chat_calls import answer_of, ask, calls_of, error_of, stream
from tests.fakes.chat_templates import template_source
from tests.fakes.running_router import RunningRouter
from tests.fakes.speaking_router import speaking, speaking_router
from tests.fakes.weather_tools import ARGUMENTS, OUTPUTS, SCHEMA, TOOLS


@pytest.mark.parametrize("template", OUTPUTS)
def test_calls_of_each_format(tmp_path: Path, template: str | None) -> None:
    with speaking(tmp_path, OUTPUTS[template], template) as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time"]
        assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "東京"}, {}]
        assert len({call["id"] for call in calls}) == 2
        content = choice["message"]["content"]
        assert content is None or content.strip() == "Let me see."
        chunks = stream(client, tools=TOOLS, max_tokens=300)
        streamed = calls_of(chunks)
        assert [call["function"] for call in streamed] == [call["function"] for call in calls]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == (content or "")
        one_call = {"tools": TOOLS, "max_tokens": 300, "parallel_tool_calls": False}
        [choice] = answer_of(client, **one_call)["choices"]
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
        assert [call["function"] for call in calls_of(stream(client, **one_call))] == [calls[0]["function"]]


def test_choice_none_and_no_tools_leave_the_text_alone(tmp_path: Path) -> None:
    with speaking(tmp_path, OUTPUTS[None]) as client:
        for fields in ({"tools": TOOLS, "tool_choice": "none"}, {"tools": []}, {}, {"tool_choice": "none"}):
            [choice] = answer_of(client, max_tokens=300, **fields)["choices"]
            assert choice["message"]["content"] == OUTPUTS[None]
            assert "tool_calls" not in choice["message"]
            assert choice["finish_reason"] == "stop"


def test_auto_may_answer_in_text(tmp_path: Path) -> None:
    with speaking(tmp_path, "It rains { in Paris }.", "qwen2_5") as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        assert choice["message"] == {"role": "assistant", "content": "It rains { in Paris }."}
        assert choice["finish_reason"] == "stop"


def test_cut_call_is_length_with_what_there_is(tmp_path: Path) -> None:
    with speaking(tmp_path, OUTPUTS["qwen2_5"], "qwen2_5") as client:
        num_tokens = OUTPUTS["qwen2_5"].index("city") + 2
        [choice] = answer_of(client, tools=TOOLS, max_tokens=num_tokens)["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"ci'
        chunks = stream(client, tools=TOOLS, max_tokens=num_tokens)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert [call["function"]["arguments"] for call in calls_of(chunks)] == ['{"ci']


@pytest.mark.parametrize("template", ["qwen2_5", "llama3", None])
def test_enforced_call_that_is_cut_before_its_arguments_is_no_content(tmp_path: Path, template: str | None) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    text = OUTPUTS[template].removeprefix("Let me see.\n")
    with speaking(tmp_path, text, template) as client:
        for choice in ("required", named):
            fields = {"tools": TOOLS, "tool_choice": choice, "max_tokens": text.index("get_weather") + 3}
            [answer] = answer_of(client, **fields)["choices"]
            assert answer["finish_reason"] == "length"
            assert not answer["message"].get("content")
            assert not any(chunk["choices"][0]["delta"].get("content") for chunk in stream(client, **fields))


@pytest.mark.parametrize("template", ["qwen2_5", "llama3", "mistral", None])
def test_stop_string_inside_a_call_ends_it_there(tmp_path: Path, template: str | None) -> None:
    """A stop string inside a call leaves arguments that are no JSON, and one behind a call changes nothing."""
    with speaking(tmp_path, OUTPUTS[template].removeprefix("Let me see.\n"), template) as client:
        for stop, arguments, reason in (("東", '{"city": "', "stop"), ("get_time", ARGUMENTS, "tool_calls")):
            fields = {"tools": TOOLS, "max_tokens": 300, "stop": stop}
            [choice] = answer_of(client, **fields)["choices"]
            chunks = stream(client, **fields)
            for calls in (choice["message"]["tool_calls"], calls_of(chunks)):
                assert [call["function"]["arguments"] for call in calls] == [arguments]
            assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == reason


BROKEN_OFF = {
    "qwen2_5": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Os',
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOs",
    "deepseek_v31": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Os',
}


@pytest.mark.parametrize("template", BROKEN_OFF)
def test_call_that_the_model_breaks_off_is_none_to_make(tmp_path: Path, template: str) -> None:
    """The finish reason `tool_calls` says that all arguments are whole JSON objects."""
    with speaking(tmp_path, BROKEN_OFF[template], template) as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        assert choice["finish_reason"] == "stop"
        assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ['{"city": "Os']
        chunks = stream(client, tools=TOOLS, max_tokens=300)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert [call["function"]["arguments"] for call in calls_of(chunks)] == ['{"city": "Os']


@pytest.mark.parametrize(
    ("text", "is_parallel", "reason"),
    [
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"</tool_call>', True, "tool_calls"),
        (
            f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>\n<tool_call>{{"name": "f", '
            '"arguments": {"a": 01}}</tool_call>',
            True,
            "stop",
        ),
        (
            f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>\n<tool_call>{{"name": "f", '
            '"arguments": {"a": 01}}</tool_call>',
            False,
            "tool_calls",
        ),
    ],
)
def test_finish_reason_tells_whether_the_calls_that_are_shown_are_whole(
    tmp_path: Path, text: str, is_parallel: bool, reason: str
) -> None:
    fields = {"tools": TOOLS, "max_tokens": 300, "parallel_tool_calls": is_parallel}
    with speaking(tmp_path, text, "qwen2_5") as client:
        [choice] = answer_of(client, **fields)["choices"]
        assert choice["finish_reason"] == reason
        chunks = stream(client, **fields)
        assert chunks[-1]["choices"][0]["finish_reason"] == reason
        assert [call["function"] for call in calls_of(chunks)] == [
            call["function"] for call in choice["message"]["tool_calls"]
        ]


@pytest.mark.parametrize("text", ["[get_weather(city=float('inf'))]", "[get_weather(city=f'{x}' + 'a')] so"])
def test_python_that_is_no_literal_is_text(tmp_path: Path, text: str) -> None:
    with speaking(tmp_path, text, "pythonic") as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": text}, "stop")
        chunks = stream(client, tools=TOOLS, max_tokens=300)
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text


def test_ids_that_the_model_writes_are_shown(tmp_path: Path) -> None:
    """The templates of Kimi K2 show a call by its id, which therefore must come back as the model wrote it."""
    with speaking(tmp_path, OUTPUTS["kimi_k2"], "kimi_k2") as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        ids = ["functions.get_weather:0", "functions.get_time:1"]
        assert [call["id"] for call in choice["message"]["tool_calls"]] == ids
        assert [call["id"] for call in calls_of(stream(client, tools=TOOLS, max_tokens=300))] == ids


def test_named_tool_is_one_call_unless_several_are_asked_for(tmp_path: Path) -> None:
    call = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
    choice = {"type": "function", "function": {"name": "get_weather"}}
    with speaking(tmp_path, f"{call}\n{call}", "qwen2_5") as client:
        for fields, num_calls in (({}, 1), ({"parallel_tool_calls": False}, 1), ({"parallel_tool_calls": True}, 2)):
            [answer] = answer_of(client, tools=TOOLS, tool_choice=choice, max_tokens=300, **fields)["choices"]
            assert len(answer["message"]["tool_calls"]) == num_calls
        [answer] = answer_of(client, tools=TOOLS, tool_choice="required", max_tokens=300)["choices"]
        assert len(answer["message"]["tool_calls"]) == 2


def test_template_that_takes_no_tools_teaches_no_format(tmp_path: Path) -> None:
    """The tool prompt alone says how to write calls, whatever the template writes of them."""
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"chat_template": "{# [TOOL_CALLS] #}{{ messages[0].content }}"}))
    with speaking_router(tmp_path, OUTPUTS[None], tokenizer_config_path=str(path)) as router, router.client() as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        assert len(choice["message"]["tool_calls"]) == 2


def test_strict_tool_has_a_grammar_though_the_choice_is_free(tmp_path: Path) -> None:
    strict = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    with speaking_router(tmp_path, OUTPUTS["qwen2_5"], "qwen2_5") as router, router.client() as client:
        for fields in ({}, {"tool_choice": "auto"}):
            [choice] = answer_of(client, tools=[strict, TOOLS[1]], max_tokens=300, **fields)["choices"]
            assert len(choice["message"]["tool_calls"]) == 2
            grammar = router.shard.history[-1].last_admit.grammar.text
            assert json.dumps(SCHEMA["properties"], separators=(",", ":"))[1:-1] in grammar
            assert "get_time" in grammar
        allowed = {"mode": "auto", "tools": [TOOLS[1]]}
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        answer_of(client, tools=TOOLS, tool_choice=choice, max_tokens=300)
        grammar = router.shard.history[-1].last_admit.grammar.text
        assert ("get_time" in grammar, "get_weather" in grammar) == (True, False)
        answer_of(client, tools=[strict], tool_choice="none", max_tokens=300)
        assert not router.shard.history[-1].last_admit.HasField("grammar")


FLAGS = {
    "hermes": "qwen2_5",
    "mistral": "mistral",
    "llama3_json": "llama3",
    "qwen3_coder": "qwen3_coder",
    "qwen3_xml": "qwen3_coder",
    "pythonic": "pythonic",
    "llama4_pythonic": "pythonic",
    "deepseek_v3": "deepseek_v31",
    "deepseek_v31": "deepseek_v31",
    "phi4_mini": "phi4_mini",
    "phi4_mini_json": "functools",
    "functools": "functools",
    "kimi_k2": "kimi_k2",
    "glm45": "glm45",
    "glm47": "glm45",
    "minimax": "minimax_m1",
    "minimax_m1": "minimax_m1",
    "minimax_m2": "minimax_m2",
    "granite": "granite",
    "command_r": "command_r",
    "harmony": "gpt_oss",
    "openai": "gpt_oss",
    "gpt-oss": "gpt_oss",
}


@pytest.mark.parametrize(
    ("flag", "template"),
    [
        ("hermes", None),
        ("mistral", "qwen2_5"),
        ("llama3_json", "mistral"),
        ("qwen3_coder", None),
        ("qwen3_xml", "qwen2_5"),
        ("pythonic", None),
        ("llama4_pythonic", "llama3"),
        ("deepseek_v3", None),
        ("deepseek_v31", "qwen3"),
        ("phi4_mini", None),
        ("phi4_mini_json", None),
        ("functools", "qwen3"),
        ("kimi_k2", None),
        ("glm45", "qwen3"),
        ("glm47", None),
        ("minimax", None),
        ("minimax_m1", "qwen3"),
        ("minimax_m2", None),
        ("granite", "llama3"),
        ("command_r", "qwen3"),
        ("harmony", None),
        ("openai", "qwen3"),
        ("gpt-oss", "gpt_oss"),
        ("hermes", "gpt_oss"),
    ],
)
def test_flag_tells_the_format_of_calls(tmp_path: Path, flag: str, template: str | None) -> None:
    """The flag wins over the format that the template teaches."""
    text = OUTPUTS[FLAGS[flag]]
    with speaking_router(tmp_path, text, template, tool_call_parser=flag) as router, router.client() as client:
        [choice] = answer_of(client, tools=TOOLS, max_tokens=300)["choices"]
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather", "get_time"]


@pytest.mark.parametrize(("flag", "tag"), [("think", "think"), ("mistral", "THINK")])
def test_flag_tells_the_format_of_reasoning(tmp_path: Path, flag: str, tag: str) -> None:
    opening, closing = (f"<{tag}>", f"</{tag}>") if flag == "think" else (f"[{tag}]", f"[/{tag}]")
    text = f"{opening}Hm.{closing}Yes."
    with speaking_router(tmp_path, text, reasoning_parser=flag) as router, router.client() as client:
        message = answer_of(client, max_tokens=100)["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        "get_weather",
        {"type": "function", "function": {"name": "get_weather"}},
        {"function": {"name": "get_weather"}},
        {"FunctionName": "get_weather"},
    ],
)
def test_enforced_calls_have_a_grammar(tmp_path: Path, choice: object) -> None:
    """The fake shard enforces no grammar, so the test looks only whether a grammar reaches the shard."""
    text = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
    with speaking_router(tmp_path, text, "qwen2_5") as router, router.client() as client:
        [answer] = answer_of(client, tools=TOOLS, tool_choice=choice, max_tokens=200)["choices"]
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
        grammar = router.shard.history[-1].last_admit.grammar.text
        assert "get_weather" in grammar
        assert ("get_time" in grammar) == (choice == "required")
        answer_of(client, tools=TOOLS, max_tokens=200)
        assert not router.shard.history[-1].last_admit.HasField("grammar")


def test_conversation_with_calls_and_answers_is_shown(tmp_path: Path) -> None:
    with speaking(tmp_path, OUTPUTS["qwen2_5"], "qwen2_5") as client:
        message = answer_of(client, tools=TOOLS, max_tokens=300)["choices"][0]["message"]
        messages = [
            {"role": "user", "content": "hi"},
            message,
            *({"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in message["tool_calls"]),
        ]
        shown = client.post("/chat_tokenize", json={"messages": messages, "tools": TOOLS}).json()["templated_text"]
        assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "東京"}}\n</tool_call>' in shown
        assert shown.count("<tool_response>\nrain\n</tool_response>") == 2
        assert json.dumps(TOOLS[0], ensure_ascii=False) in shown
        answer_of(client, messages=messages, tools=TOOLS, max_tokens=300)


WRITTEN_CALLS = {
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n東京\n</parameter>\n</function>\n</tool_call>"
    ),
    "pythonic": '[get_weather(city="東京")]',
    "gpt_oss": f" to=functions.get_weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>",
    "deepseek_v31": f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>",
    "phi4_mini": f'<|tool_call|>{{"name": "get_weather", "arguments": {ARGUMENTS}}}<|/tool_call|>',
    "command_r": f'"tool_name": "get_weather", "parameters": {ARGUMENTS}}}',
    "granite": f'<|tool_call|>[{{"name": "get_weather", "arguments": {ARGUMENTS}}}',
    "functools": f'functools[{{"name": "get_weather", "arguments": {ARGUMENTS}}}',
    "kimi_k2": f"<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>",
    "glm45": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>東京</arg_value>\n</tool_call>",
    "minimax_m1": f'<tool_calls>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n',
    "minimax_m2": '<invoke name="get_weather">\n<parameter name="city">東京</parameter>\n</invoke>\n',
}
ALL_TYPES = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "flag": {"type": "boolean"},
        "nothing": {"type": "null"},
        "list": {"type": "array"},
        "map": {"type": "object"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
VALUES = {
    "text": "Line \"one\"\n<b>'two'</b>\\",
    "count": -5,
    "flag": True,
    "nothing": None,
    "list": [1, "a", {"b": False}],
    "map": {"c": [None, 2.5]},
    "maybe": None,
}


@pytest.mark.parametrize("template", WRITTEN_CALLS)
def test_calls_that_the_template_shows_are_read_as_they_were_given(tmp_path: Path, template: str) -> None:
    """The prompt shows earlier calls in the form that the model writes."""
    act = {"type": "function", "function": {"name": "act", "parameters": ALL_TYPES}}
    with speaking(tmp_path, OUTPUTS[template], template) as client:
        message = answer_of(client, tools=TOOLS, max_tokens=300)["choices"][0]["message"]
        given = {
            "id": "functions.act:2",
            "type": "function",
            "function": {"name": "act", "arguments": json.dumps(VALUES)},
        }
        messages = [
            {"role": "user", "content": "hi"},
            message,
            *({"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in message["tool_calls"]),
            {"role": "assistant", "content": None, "tool_calls": [given]},
        ]
        body = {"messages": messages, "tools": [*TOOLS, act], "add_generation_prompt": False}
        shown = client.post("/chat_tokenize", json=body).json()["templated_text"]
        assert WRITTEN_CALLS[template].strip("[]") in shown
        marks = {"deepseek_v31": "<｜tool▁output▁end｜>", "command_r": "<|CHATBOT_TOKEN|>", "minimax_m2": "]~b]ai"}
        mark = marks.get(template, "assistant")
        written = shown[shown.rindex(mark) + len(mark) :].split("<|im_end|>")[0].split("<|eot")[0]
        written = written.removeprefix("<|header_end|>")
    (tmp_path / "again").mkdir()
    with speaking(tmp_path / "again", written, template) as client:
        [choice] = answer_of(client, tools=[act], max_tokens=900)["choices"]
        [call] = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == VALUES
        assert call["function"]["name"] == "act"
        [streamed] = calls_of(stream(client, tools=[act], max_tokens=900))
        assert streamed["function"] == call["function"]


@pytest.mark.parametrize("template", ["qwen3_coder", "pythonic"])
def test_written_calls_are_enforced_behind_reasoning(tmp_path: Path, template: str) -> None:
    """Required, named and strict tools have a grammar, which lets the model think first."""
    text = f"<think>\nHm [.\n</think>\n\n{WRITTEN_CALLS[template]}"
    named = {"type": "function", "function": {"name": "get_weather"}}
    strict = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    config = {"chat_template": template_source(template) + "{# </think> #}"}
    (tmp_path / "given.json").write_text(json.dumps(config))
    with (
        speaking_router(tmp_path, text, tokenizer_config_path=str(tmp_path / "given.json")) as router,
        router.client() as client,
    ):
        for fields in ({"tool_choice": "required"}, {"tool_choice": named}, {"tools": [strict]}):
            [choice] = answer_of(client, **{"tools": TOOLS, "max_tokens": 300, **fields})["choices"]
            assert choice["message"]["reasoning_content"] == "Hm [."
            assert choice["message"]["content"] is None
            [call] = choice["message"]["tool_calls"]
            assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
            assert choice["finish_reason"] == "tool_calls"
            grammar = router.shard.history[-1].last_admit.grammar.text
            assert "think" in grammar
            assert "get_weather" in grammar
            assert ("get_time" in grammar) == (fields == {"tool_choice": "required"})
        bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "minProperties": 1}}}
        error = error_of(ask(client, tools=[bad], tool_choice="required"), 422)
        assert (error["param"], "`minProperties`" in error["message"]) == ("tools", True)


CHANNELS = "<|channel|>analysis<|message|>Hm {.<|end|><|start|>assistant"


def test_channels_tell_reasoning_text_and_calls(tmp_path: Path) -> None:
    """The answers of gpt-oss; a grammar binds the last message, and thoughts are free."""
    strict = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    form = {"type": "json_object"}
    with speaking_router(tmp_path, CHANNELS + WRITTEN_CALLS["gpt_oss"], "gpt_oss") as router, router.client() as client:
        for fields in ({}, {"tool_choice": "required"}, {"tools": [strict]}, {"response_format": form}):
            [choice] = answer_of(client, **{"tools": TOOLS, "max_tokens": 300, **fields})["choices"]
            assert choice["message"]["reasoning_content"] == "Hm {."
            assert choice["message"]["content"] is None
            [call] = choice["message"]["tool_calls"]
            assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
            assert choice["finish_reason"] == "tool_calls"
            admit = router.shard.history[-1].last_admit
            assert admit.HasField("grammar") is bool(fields)
            assert ("analysis" in admit.grammar.text) is bool(fields)
    (tmp_path / "text").mkdir()
    said = f"{CHANNELS}<|channel|>final<|message|>{ARGUMENTS}"
    with speaking_router(tmp_path / "text", said, "gpt_oss") as router, router.client() as client:
        for fields in ({}, {"tools": TOOLS}, {"response_format": form}, {"tools": TOOLS, "response_format": form}):
            [choice] = answer_of(client, max_tokens=300, **fields)["choices"]
            assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Hm {.", ARGUMENTS)
            assert choice["finish_reason"] == "stop"
            deltas = [chunk["choices"][0]["delta"] for chunk in stream(client, max_tokens=300, **fields)]
            assert "".join(delta.get("content") or "" for delta in deltas) == ARGUMENTS
            assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm {."
    (tmp_path / "more").mkdir()
    with speaking_router(tmp_path / "more", " well <done>.", "gpt_oss") as router, router.client() as client:
        begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Very"}]
        [choice] = answer_of(client, messages=begun, max_tokens=300)["choices"]
        assert choice["message"] == {"role": "assistant", "content": " well <done>."}


def test_ids_names_and_thoughts_of_messages_reach_the_template(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{{ [m.role, m.name, m.tool_call_id, m.reasoning_content, m.content] | join('|') }}"
        "{% for c in m.tool_calls %}|{{ [c.id, c.type, c.function.name, c.function.arguments.a] | join(',') }}"
        "{{ '!' if c.function.arguments is string }}"
        "{% endfor %};{% endfor %}{{ documents[0].title }}{{ style }}"
    )
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"chat_template": source}))
    with RunningRouter(tmp_path, tokenizer_config_path=str(path)) as router, router.client() as client:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 5}'}}
        shape_of_tgi = {"id": "c2", "function": {"name": "g", "parameters": {"a": 6}, "description": None}}
        messages = [
            {"role": "user", "content": "hi", "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [call, shape_of_tgi], "reasoning_content": "Hm."},
            {"role": "tool", "content": [{"type": "text", "text": "ok"}], "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "Bad."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**call, "function": {"name": "h", "arguments": "[1]"}}],
            },
        ]
        told = {"documents": [{"title": "T"}], "chat_template_kwargs": {"style": "S"}, "add_generation_prompt": False}
        shown = client.post("/chat_tokenize", json={"messages": messages, "continue_final_message": False, **told})
        assert shown.json()["templated_text"].split(";") == [
            "user|Ann|||hi",
            "assistant|||Hm.||c1,function,f,5|c2,function,g,6",
            "tool|f|c1||ok",
            "assistant|||Bad.|no",
            "assistant|||||c1,function,h,!",
            "TS",
        ]


def test_what_a_template_refuses_is_422_with_its_message(tmp_path: Path) -> None:
    with speaking(tmp_path, "x", "mistral") as client:
        for route, fields in (("/v1/chat/completions", {}), ("/v1/chat/completions", {"stream": True})):
            messages = [{"role": "assistant", "content": "first"}, {"role": "user", "content": "second"}]
            answer = client.post(route, json={"messages": messages, **fields})
            assert "roles must alternate" in error_of(answer, 422)["message"]
            assert answer.json()["error_type"] == "template_error"
        answer = client.post("/chat_tokenize", json={"messages": messages})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "template_error")
        assert answer.json()["error"].startswith("Template error: After the optional system message")


def test_template_without_tools_gets_them_in_words(client: httpx.Client) -> None:
    def shown(**fields: Any) -> str:
        body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, **fields}
        text: str = client.post("/chat_tokenize", json=body).json()["templated_text"]
        return text

    assert "get_weather" in shown()
    assert '"city"' in shown()
    assert "Do it well." in shown(tool_prompt="Do it well.")
    # The tools stand behind the last message, but before an answer that the model continues.
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}]
    text = shown(messages=begun)
    assert "get_weather" in text
    assert text.endswith("\nassistant: Sure,")
    shape_of_tgi = {"type": None, "function": {"name": "f", "description": None, "arguments": SCHEMA}}
    wanted = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    assert json.dumps([wanted]) in shown(tools=[shape_of_tgi])
    assert "get_weather" not in shown(tool_choice="none")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    text = shown(messages=messages, tools=None)
    assert 'assistant: {"name": "f", "parameters": {"a": 1}}\ntool: done\n' in text


def test_tool_shapes_of_tgi_are_taken(client: httpx.Client) -> None:
    for tool in (
        {"function": {"name": "f", "arguments": SCHEMA}},
        {"type": None, "function": {"name": "f", "description": None}},
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": False, "x": 1}},
    ):
        assert ask(client, tools=[tool]).status_code == 200


def test_reasoning_stands_apart(tmp_path: Path) -> None:
    with speaking(tmp_path, "<think>\nHm, 東京.\n</think>\n\nYes.", "qwen3") as client:
        [choice] = answer_of(client, max_tokens=100)["choices"]
        assert choice["message"]["content"] == "Yes."
        assert choice["message"]["reasoning_content"].strip() == "Hm, 東京."
        chunks = stream(client, max_tokens=100)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Yes."
        assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == "Hm, 東京."
        assert "role" in deltas[0]
        assert sum("role" in delta for delta in deltas) == 1
