"""Tools in words, for chat templates that take none: text that goes behind the last message's."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

DEFAULT_TOOL_PROMPT = (
    "The functions above can be called. If a call helps to answer, reply with nothing but a JSON object for the call: "
    '{"name": the function\'s name, "parameters": an object with its arguments}. Write values, not variables.'
)


def tool_words(tools: Sequence[Mapping[str, Any]], tool_prompt: str | None, *, template_takes_tools: bool) -> str:
    """What is appended to the content of the last message as it stands; empty for a template that says it all itself.

    An empty `tool_prompt` is an absent one. One that the request brings goes into every prompt; the schemas only where
    the template does not write them.
    """
    if template_takes_tools:
        return f"\n---\n{tool_prompt}" if tool_prompt else ""
    schemas = json.dumps(list(tools), ensure_ascii=False)
    return f"\n---\n{schemas}\n{tool_prompt or DEFAULT_TOOL_PROMPT}"
