"""Command R7B and Command A: a list between tags, whose objects have names of their own for name and arguments.

<|START_ACTION|>[{"tool_call_id": "0", "tool_name": ..., "parameters": {...}}, ...]<|END_ACTION|>
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from textmill_router.parsers.tools.call_shape import CallShape, InOrder, JsonValue, OneOf, Repeated, Text, WrittenCall
from textmill_router.parsers.tools.json_calls import JsonRules, json_reader
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING, _CLOSING = "<|START_ACTION|>", "<|END_ACTION|>"
_RULES = JsonRules(re.compile("<"), _OPENING, _CLOSING)
_DIGIT = OneOf(tuple(Text(digit) for digit in "0123456789"))


def _write_call(name: str, schema: Mapping[str, Any]) -> WrittenCall:
    number = (Text('{"tool_call_id": "'), _DIGIT, Repeated(_DIGIT))
    said = Text(f'", "tool_name": {json.dumps(name, ensure_ascii=False)}, "parameters": ')
    return WrittenCall("", InOrder((*number, said, JsonValue(schema), Text("}"))), name)


_SHAPE = CallShape(
    _write_call,
    opening=_OPENING,
    closing=_CLOSING,
    before="[\n    ",
    after="\n]",
    between=",\n    ",
    is_list=True,
)

COMMAND_R = ToolFormat(
    name="command_r",
    markers=(_OPENING, _CLOSING),
    is_taught_by=lambda template: _OPENING in template,
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
