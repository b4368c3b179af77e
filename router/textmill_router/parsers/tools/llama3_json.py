"""Llama 3.1 and 3.3: `{"name": ..., "parameters": {...}}`, several parted by `;`, or after `<|python_tag|>`."""

import re

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.json_calls import ANY_JSON_CALL, JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING = "<|python_tag|>"
_TOOLS_WORD = re.compile(r"\btools\b")
_RULES = JsonRules(re.compile(r"[<{]"), _OPENING, separators=";")
_SHAPE = CallShape(json_writer("parameters"), between="; ", any_call=ANY_JSON_CALL)


def _is_taught_by(template: str) -> bool:
    return _OPENING in template or ("<|start_header_id|>" in template and _TOOLS_WORD.search(template) is not None)


LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    markers=(_OPENING,),
    is_taught_by=_is_taught_by,
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
