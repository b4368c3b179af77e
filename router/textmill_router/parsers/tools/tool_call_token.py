"""Granite 3 and Phi-4-mini: JSON behind the token `<|tool_call|>`.

Granite writes one list, `<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`; Phi-4-mini writes each call between
tags, `<|tool_call|>{"name": ..., "arguments": {...}}<|/tool_call|>`. The reader takes both.
"""

import re

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.json_calls import JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING, _CLOSING = "<|tool_call|>", "<|/tool_call|>"
_RULES = JsonRules(re.compile("<"), _OPENING, _CLOSING, separators="}")
_LIST = CallShape(json_writer("arguments"), opening=_OPENING, before="[", after="]", between=", ", is_list=True)
_TAGGED = CallShape(json_writer("arguments"), opening=_OPENING, closing=_CLOSING)

PHI4_MINI = ToolFormat(
    name="phi4_mini",
    markers=(_OPENING, _CLOSING),
    is_taught_by=lambda template: _CLOSING in template,
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _TAGGED,
)
GRANITE = ToolFormat(
    name="granite",
    markers=(_OPENING,),
    is_taught_by=lambda template: _OPENING in template,
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _LIST,
)
