"""Kimi K2: an id, which holds the name, and a JSON object for each call, between tags of the vocabulary.

<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
<|tool_calls_section_end|>, without a line end. The number counts the calls of the conversation from 0. The templates
show a call by its id alone, so that the ids of the model's own form must reach the client.
"""

import re
from collections.abc import Mapping
from typing import Any

from textmill_router.parsers.tools.call_shape import (
    CallShape,
    InOrder,
    JsonValue,
    Marker,
    OneOf,
    Repeated,
    Text,
    WrittenCall,
)
from textmill_router.parsers.tools.framed_calls import FrameRules, Header, check_name, framed_reader
from textmill_router.parsers.tools.tool_format import ToolFormat

_PREFIX = "functions."
_SEPARATOR = "<|tool_call_argument_begin|>"
_DECLARATION = "tool_declare<|im_middle|>"  # in the first published template, which shows no calls
_HEADER = re.compile(rf"\s*((?:functions\.)?([^\s<][^\n<]*?)(:\d+)?)\s*{re.escape(_SEPARATOR)}\s*")
_DIGIT = OneOf(tuple(Text(digit) for digit in "0123456789"))


def _read_header(header: str) -> Header | None:
    found = _HEADER.fullmatch(header)
    return None if found is None else Header(found[2], found[1] if found[3] else "")


_RULES = FrameRules(
    opening="<|tool_calls_section_begin|>",
    call="<|tool_call_begin|>",
    separator=_SEPARATOR,
    end_of_call="<|tool_call_end|>",
    closing="<|tool_calls_section_end|>",
    read_header=_read_header,
)


def _write_call(name: str, schema: Mapping[str, Any]) -> WrittenCall:
    check_name(name)
    written_id = (Text(f"{_PREFIX}{name}:"), _DIGIT, Repeated(_DIGIT))
    body = (Marker(_SEPARATOR), JsonValue(schema), Marker(_RULES.end_of_call))
    return WrittenCall("", InOrder((Marker(_RULES.call), *written_id, *body)), name)


_SHAPE = CallShape(
    _write_call,
    opening=_RULES.opening,
    closing=_RULES.closing,
    is_list=True,
    any_call=r"\x{3c}\|tool_call_begin",  # a reader takes a call without the tags around all calls too
)

KIMI_K2 = ToolFormat(
    name="kimi_k2",
    markers=_RULES.tags,
    is_taught_by=lambda template: _SEPARATOR in template or _DECLARATION in template,
    new_reader=framed_reader(_RULES),
    shape=lambda tokens: _SHAPE,
    new_id=lambda name, index: f"{_PREFIX}{name}:{index}",
)
