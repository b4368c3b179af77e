"""`functions` and `function_call`, the deprecated form of `tools` and `tool_choice`, which OpenAI still takes."""

from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import ChatBody, DeclaredFunction
from textmill_router.errors import ToolError, ValidationFailed
from textmill_router.http.json_shape import shape_error


def with_tools(body: ChatBody) -> ChatBody:
    """Return the body with its functions as tools, of which an answer calls one at most; other bodies as they are.

    Raises ValidationFailed for a wrong shape and for both forms at once, ToolError for a function that is not declared.
    """
    if body.functions is None and body.function_call is None:
        return body
    for name in ("tools", "tool_choice"):
        if getattr(body, name) is not None:
            raise ValidationFailed(f"`{name}` and `functions` exclude each other: leave `functions` out", field=name)
    names = _names(body.functions or [])
    choice = _choice(body.function_call, names)
    if not names:
        return body
    tools = [{"type": "function", "function": function} for function in body.functions or ()]
    return msgspec.structs.replace(body, tools=tools, tool_choice=choice, parallel_tool_calls=False)


def _names(functions: list[dict[str, Any]]) -> list[str]:
    names = []
    for index, function in enumerate(functions):
        try:
            declared = msgspec.convert(function, DeclaredFunction)
        except msgspec.ValidationError as error:
            raise shape_error(str(error), function, f"functions[{index}]") from None
        if not declared.name:
            field = f"functions[{index}].name"
            raise ValidationFailed(f"`{field}` must not be empty", field=field)
        if declared.parameters is not None and not isinstance(declared.parameters, dict):
            field = f"functions[{index}].parameters"
            raise ValidationFailed(f"`{field}` must be a JSON schema as an object", field=field)
        names.append(declared.name)
    return names


def _choice(function_call: object, names: list[str]) -> Any:
    """Return the `tool_choice` that means the same as a `function_call`."""
    if function_call is None or function_call in ("none", "auto"):
        return function_call if names else None
    name = function_call.get("name") if isinstance(function_call, dict) else None
    if not isinstance(name, str):
        raise ValidationFailed('`function_call` must be "auto", "none" or {"name": ...}', field="function_call")
    if name not in names:
        known = f"which is none of the functions: {', '.join(names)}" if names else "and `functions` has none"
        raise ToolError(f"`function_call` names {name!r}, {known}", field="function_call")
    return {"type": "function", "function": {"name": name}}
