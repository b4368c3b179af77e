"""Hermes, Qwen 2.5 and Qwen 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

import re

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.json_calls import JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_RULES = JsonRules(re.compile("<"), _OPENING, _CLOSING, separators="}")
_SHAPE = CallShape(json_writer("arguments"), opening=_OPENING, closing=_CLOSING, before="\n", after="\n", between="\n")

HERMES = ToolFormat(
    name="hermes",
    markers=(_OPENING, _CLOSING),
    is_taught_by=lambda template: _OPENING in template,
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
