"""MiniMax: M1 writes objects of JSON between tags, a line each, and M2 writes each parameter in a tag of its own.

M1: <tool_calls>
{"name": ..., "arguments": {...}}
</tool_calls>
M2: <minimax:tool_call>
<invoke name="NAME">
<parameter name="KEY">VALUE</parameter>
</invoke>
</minimax:tool_call>
"""

import re

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.json_calls import JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tag_grammar import tag_writer
from textmill_router.parsers.tools.tagged_parameters import TagRules, tag_reader
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING, _CLOSING = "<tool_calls>", "</tool_calls>"
_M1_RULES = JsonRules(re.compile("<"), _OPENING, _CLOSING, separators="}", has_many=True)
_M1_SHAPE = CallShape(
    json_writer("arguments"),
    opening=_OPENING,
    closing=_CLOSING,
    before="\n",
    after="\n",
    between="\n",
    is_list=True,
)
_M2_RULES = TagRules(
    opening="<minimax:tool_call>",
    call='<invoke name="',
    end_of_name='">',
    key='<parameter name="',
    end_of_key='">',
    end_of_value="</parameter>",
    end_of_call="</invoke>",
    closing="</minimax:tool_call>",
)
_M2_SHAPE = CallShape(
    tag_writer(_M2_RULES),
    opening=_M2_RULES.opening,
    closing=_M2_RULES.closing,
    before="\n",
    after="\n",
    between="\n",
    is_list=True,
    any_call=r"\x{3c}invoke name=",  # a reader takes a call without the opening tag too
)

MINIMAX_M1 = ToolFormat(
    name="minimax_m1",
    aliases=("minimax",),
    markers=(_OPENING, _CLOSING),
    is_taught_by=lambda template: _OPENING in template and "<tool_call>" not in template,
    new_reader=json_reader(_M1_RULES),
    shape=lambda tokens: _M1_SHAPE,
)
MINIMAX_M2 = ToolFormat(
    name="minimax_m2",
    markers=(_M2_RULES.opening, _M2_RULES.closing),
    is_taught_by=lambda template: _M2_RULES.opening in template,
    new_reader=tag_reader(_M2_RULES),
    shape=lambda tokens: _M2_SHAPE,
)
