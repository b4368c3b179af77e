"""The format that a template teaches, the tokens that are shown, and the place where an answer begins."""

import pytest
from textmill_router.parsers.formats import (
    ReasoningFormat,
    markers_of,
    reasoning_format_of,
    starts_in_reasoning,
    takes_tools,
    tool_format_of,
)
from textmill_router.parsers.tools import (
    command_r,
    deepseek,
    functools,
    generic_json,
    glm4,
    harmony,
    hermes,
    kimi_k2,
    llama3_json,
    minimax,
    mistral,
    pythonic,
    qwen3_coder,
    tool_call_token,
)
from textmill_router.parsers.tools.tool_format import ToolFormat

# The parts of published templates by which the format is known.
QWEN = "{%- if tools %}<tools>...</tools> ... <tool_call></tool_call> ... {{- '<think>\\n\\n</think>\\n\\n' }}"
LLAMA = "{%- if builtin_tools is defined or tools is not none %}<|start_header_id|>ipython ... tools"
LLAMA_31 = '<|start_header_id|> "<|python_tag|>" + tool_call.name + ".call("'
QWEN_CODER = "{%- if tools %}<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n"
MISTRAL = '{%- if tools is not none %}[AVAILABLE_TOOLS]{% endif %} "[TOOL_CALLS] ["'
PYTHONIC = "{%- if tools %}put it in the format of [func_name1(params_name1=params_value1...), func_name2(params)]"
PLAIN_LLAMA = "{% for message in messages %}<|start_header_id|>{{ message.role }}{% endfor %}"
GPT_OSS = '{%- if tools %}to=functions." + tool_call.name + "<|channel|>commentary " {{ "<|message|>" }}'
DEEPSEEK_V31 = "{% if tools %}{{ '<｜tool▁call▁begin｜>'+ tool.name + '<｜tool▁sep｜>' + tool.arguments }}{% endif %}"
DEEPSEEK_V3 = "{{ tools }}'<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n'"
PHI4 = '{{ tools }}<|tool_call|>{"name": "foo", "arguments": {"a": 1}}<|/tool_call|>'
FUNCTOOLS = '{{ tools }} calls stand in a single JSON list formatted as functools[{"name": [function name]}, ...]'
KIMI = "{{ tools }}<|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>{{ arguments }}<|tool_call_end|>"
FIRST_KIMI = "{% if tools -%}{{ '<|im_system|>tool_declare<|im_middle|>' -}}{{- tools | tojson -}}"
GLM = "{%- if tools %}<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>"
MINIMAX_M1 = "{{ tools }}respond with <tool_calls></tool_calls> XML tags, and provide tool-name and json-object"
MINIMAX_M2 = '{{ tools }}<minimax:tool_call>\n<invoke name="tool-name-1">\n<parameter name="param-key-1">'
GRANITE = "{%- if tools %}write <|tool_call|> followed by a JSON list of tools used"
COMMAND_R = "{% if tools %}<|START_THINKING|>{{ plan }}<|END_THINKING|><|START_ACTION|>[<|END_ACTION|>{% endif %}"
ZEPHYR = "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "tools"),
    [
        (QWEN, hermes.HERMES),
        (GPT_OSS, harmony.HARMONY),
        (COMMAND_R, command_r.COMMAND_R),
        (DEEPSEEK_V31, deepseek.DEEPSEEK_V31),
        (DEEPSEEK_V3, deepseek.DEEPSEEK_V3),
        (PHI4, tool_call_token.PHI4_MINI),
        (FUNCTOOLS, functools.FUNCTOOLS),
        (KIMI, kimi_k2.KIMI_K2),
        (FIRST_KIMI, kimi_k2.KIMI_K2),
        (GLM, glm4.GLM4),
        (MINIMAX_M1, minimax.MINIMAX_M1),
        (MINIMAX_M2, minimax.MINIMAX_M2),
        (GRANITE, tool_call_token.GRANITE),
        (QWEN_CODER, qwen3_coder.QWEN3_CODER),
        (PYTHONIC, pythonic.PYTHONIC),
        (LLAMA + PYTHONIC, pythonic.PYTHONIC),
        (LLAMA, llama3_json.LLAMA3_JSON),
        (LLAMA_31, llama3_json.LLAMA3_JSON),
        (MISTRAL, mistral.MISTRAL),
        (PLAIN_LLAMA, generic_json.GENERIC_JSON),
        (ZEPHYR, generic_json.GENERIC_JSON),
    ],
)
def test_template_tells_the_format_of_calls(template: str, tools: ToolFormat) -> None:
    assert tool_format_of(template) is tools


def test_template_tells_the_format_of_reasoning() -> None:
    assert reasoning_format_of(QWEN) is ReasoningFormat.THINK
    assert reasoning_format_of("[THINK]{{ chunk.thinking }}[/THINK]") is ReasoningFormat.MISTRAL
    assert reasoning_format_of(GPT_OSS) is ReasoningFormat.HARMONY
    assert reasoning_format_of(COMMAND_R) is ReasoningFormat.COMMAND_R
    assert reasoning_format_of(LLAMA) is None


def test_template_takes_tools_if_it_speaks_of_them() -> None:
    assert takes_tools(QWEN)
    assert takes_tools(LLAMA)
    assert not takes_tools(ZEPHYR)
    assert not takes_tools("{{ my_toolset }}")


def test_prompt_that_opened_the_reasoning_starts_in_it() -> None:
    assert starts_in_reasoning("<|im_start|>assistant\n<think>\n", ReasoningFormat.THINK)
    assert not starts_in_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", ReasoningFormat.THINK)
    assert not starts_in_reasoning("<|im_start|>assistant\n<think>\n", None)
    assert not starts_in_reasoning("<|im_start|>assistant\n", ReasoningFormat.THINK)


def test_markers_are_those_of_both_formats() -> None:
    assert markers_of(None, None) == frozenset()
    assert markers_of(mistral.MISTRAL, ReasoningFormat.MISTRAL) == {
        "[TOOL_CALLS]",
        "[CALL_ID]",
        "[ARGS]",
        "[THINK]",
        "[/THINK]",
    }
