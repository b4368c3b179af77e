"""Describes tools in words, for chat templates that take no tools; the words are appended to the last message."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

DEFAULT_TOOL_PROMPT = (
    "The functions above can be called. If a call helps to answer, reply with nothing but a JSON object for the call: "
    '{"name": the function\'s name, "parameters": an object with its arguments}. Write values, not variables.'
)


def tool_words(tools: Sequence[Mapping[str, Any]], tool_prompt: str | None, *, template_takes_tools: bool) -> str:
    """Return the text that is appended to the content of the last message; empty where the template needs none.

    An empty `tool_prompt` counts as absent. The `tool_prompt` of a call goes into every prompt, the schemas only into
    the prompts of templates that take no tools.
    """
    if template_takes_tools:
        return f"\n---\n{tool_prompt}" if tool_prompt else ""
    schemas = json.dumps(list(tools), ensure_ascii=False)
    return f"\n---\n{schemas}\n{tool_prompt or DEFAULT_TOOL_PROMPT}"
