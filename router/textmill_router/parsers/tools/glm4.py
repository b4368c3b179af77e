"""GLM 4.5, 4.6 and 4.7, which write the name behind the opening tag, and each parameter in two tags of its own.

<tool_call>NAME
<arg_key>KEY</arg_key>
<arg_value>VALUE</arg_value>
</tool_call>
"""

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.tag_grammar import tag_writer
from textmill_router.parsers.tools.tagged_parameters import TagRules, tag_reader
from textmill_router.parsers.tools.tool_format import ToolFormat

_RULES = TagRules(
    opening="<tool_call>",
    key="<arg_key>",
    end_of_key="</arg_key>",
    value="<arg_value>",
    end_of_value="</arg_value>",
    closing="</tool_call>",
)
_SHAPE = CallShape(tag_writer(_RULES), opening=_RULES.opening, closing=_RULES.closing, between="\n")

GLM4 = ToolFormat(
    name="glm45",
    aliases=("glm47",),
    markers=_RULES.tags,
    is_taught_by=lambda template: _RULES.key in template and _RULES.value in template,
    new_reader=tag_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
