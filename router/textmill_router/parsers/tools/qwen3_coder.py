"""Qwen3-Coder and Qwen 3.5, which write each parameter in a tag of its own, and strings without quotes.

<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
"""

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.tag_grammar import tag_writer
from textmill_router.parsers.tools.tagged_parameters import TagRules, tag_reader
from textmill_router.parsers.tools.tool_format import ToolFormat

_RULES = TagRules(
    opening="<tool_call>",
    call="<function=",
    end_of_name=">",
    key="<parameter=",
    end_of_key=">",
    end_of_value="</parameter>",
    end_of_call="</function>",
    closing="</tool_call>",
    has_lines=True,
)
_SHAPE = CallShape(
    tag_writer(_RULES),
    opening=_RULES.opening,
    closing=_RULES.closing,
    before="\n",
    after="\n",
    between="\n",
    any_call=r"\x{3c}function=",  # a reader takes a call without the opening tag too
)

QWEN3_CODER = ToolFormat(
    name="qwen3_coder",
    aliases=("qwen3_xml",),
    markers=(_RULES.opening, _RULES.closing),
    is_taught_by=lambda template: _RULES.call in template and _RULES.key in template,
    new_reader=tag_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
