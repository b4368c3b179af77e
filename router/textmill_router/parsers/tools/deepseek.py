"""DeepSeek V3, R1 and V3.1: a name and a JSON object for each call, between tags of the vocabulary.

V3.1: <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
V3 and R1 write `function<｜tool▁sep｜>NAME`, and the object in a fence: a line "```json" before it, and "```" behind.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from textmill_router.parsers.tools.call_shape import CallShape, InOrder, JsonValue, Marker, Text, WrittenCall
from textmill_router.parsers.tools.framed_calls import FrameRules, Header, check_name, framed_reader
from textmill_router.parsers.tools.tool_format import ToolFormat

_SEPARATOR = "<｜tool▁sep｜>"
_FENCE, _END_OF_FENCE = "\n```json\n", "\n```"
_FENCED_HEADER = re.compile(rf"\s*function{_SEPARATOR}\s*([^\s`<][^\n`<]*?)\s*(```(json)?\s*)?")
_HEADER = re.compile(rf"\s*([^\s<][^\n<]*?)\s*{_SEPARATOR}\s*(```(json)?\s*)?")


def _read_header(header: str) -> Header | None:
    found = _FENCED_HEADER.fullmatch(header) or _HEADER.fullmatch(header)
    return None if found is None else Header(found[1])


_RULES = FrameRules(
    opening="<｜tool▁calls▁begin｜>",
    call="<｜tool▁call▁begin｜>",
    separator=_SEPARATOR,
    end_of_call="<｜tool▁call▁end｜>",
    closing="<｜tool▁calls▁end｜>",
    read_header=_read_header,
)


def _writer(*, is_fenced: bool) -> Callable[[str, Mapping[str, Any]], WrittenCall]:
    call, end_of_call = Marker(_RULES.call), Marker(_RULES.end_of_call)

    def write(name: str, schema: Mapping[str, Any]) -> WrittenCall:
        check_name(name)
        if is_fenced:
            begin, end = (Text("function"), Marker(_SEPARATOR), Text(name + _FENCE)), Text(_END_OF_FENCE)
            return WrittenCall("", InOrder((call, *begin, JsonValue(schema), end, end_of_call)), name)
        return WrittenCall("", InOrder((call, Text(name), Marker(_SEPARATOR), JsonValue(schema), end_of_call)), name)

    return write


def _shape(*, is_fenced: bool) -> Callable[[Collection[str]], CallShape]:
    shape = CallShape(
        _writer(is_fenced=is_fenced),
        opening=_RULES.opening,
        closing=_RULES.closing,
        between="\n" if is_fenced else "",
        is_list=True,
        any_call="\\x{3c}" + _RULES.call[1:],  # a reader takes a call without the tags around all calls too
    )
    return lambda tokens: shape


DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    aliases=("deepseekv3",),
    markers=_RULES.tags,
    is_taught_by=lambda template: _SEPARATOR in template and "```json" in template,
    new_reader=framed_reader(_RULES),
    shape=_shape(is_fenced=True),
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    aliases=("deepseekv31",),
    markers=_RULES.tags,
    is_taught_by=lambda template: _SEPARATOR in template,
    new_reader=framed_reader(_RULES),
    shape=_shape(is_fenced=False),
)
