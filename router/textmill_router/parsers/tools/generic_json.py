"""An object or an array of objects in the midst of text, for models whose template teaches no known format.

An object is `{"name": ..., "arguments": {...}}`, as in Hermes' format, or has `parameters`, as in Llama's.
"""

import re

from textmill_router.parsers.tools.call_shape import CallShape
from textmill_router.parsers.tools.json_calls import ANY_JSON_CALL, JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tool_format import ToolFormat

_RULES = JsonRules(re.compile(r"[\[{]"), separators=";,")
_SHAPE = CallShape(json_writer("parameters"), between="\n", any_call=ANY_JSON_CALL)

GENERIC_JSON = ToolFormat(
    name="json",
    is_taught_by=lambda template: True,  # stands last
    new_reader=json_reader(_RULES),
    shape=lambda tokens: _SHAPE,
)
