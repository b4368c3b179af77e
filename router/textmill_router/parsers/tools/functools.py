"""Phi-4-mini with the template of vLLM, and Firefunction: `functools[{"name": ..., "arguments": {...}}, ...]`."""

import re

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.json_calls import JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING = "functools"
_RULES = JsonRules(re.compile(r"\bf"), _OPENING, is_word=True)
_SHAPE = CallShape(json_writer("arguments"), opening=f"{_OPENING}[", after="]", between=", ", is_list=True)

FUNCTOOLS = ToolFormat(
    name="functools",
    aliases=("phi4_mini_json",),
    is_taught_by=lambda template: f"{_OPENING}[" in template,
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
