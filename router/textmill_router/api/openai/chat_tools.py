"""`tools` and `tool_choice` of a chat body: OpenAI's shapes and TGI's."""

from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import ChatBody, DeclaredFunction, DeclaredTool
from textmill_router.chat.tools import ToolChoice
from textmill_router.errors import ToolError, ValidationFailed
from textmill_router.parsers.tools.tool_format import ToolSpec

_TOOLS = list[DeclaredTool]


def tool_choice_of(body: ChatBody) -> ToolChoice | None:
    """None where no tool may be called. Raises ValidationFailed for a wrong shape, ToolError for an unknown name."""
    if not body.tools:
        return None
    try:
        declared = msgspec.convert(body.tools, _TOOLS)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error)) from None
    specs = tuple(_spec(tool.function, index) for index, tool in enumerate(declared))
    choice = _choice(body.tool_choice)
    if choice == "none":
        return None
    named = None if choice in ("auto", "required") else choice
    if named is not None and named not in {spec.name for spec in specs}:
        known = ", ".join(spec.name for spec in specs)
        raise ToolError(f"`tool_choice` names {named!r}, which is none of the tools: {known}", field="tool_choice")
    return ToolChoice(
        shown=[_shown(raw, spec) for raw, spec in zip(body.tools, specs, strict=True)],
        specs=specs if named is None else tuple(spec for spec in specs if spec.name == named)[:1],
        chosen=named,
        is_required=choice != "auto",
        # A named tool is one call, as at OpenAI, unless several are asked for.
        is_parallel=body.parallel_tool_calls is not False and (named is None or bool(body.parallel_tool_calls)),
        prompt=body.tool_prompt or None,
    )


def _choice(choice: object) -> str:
    """`auto`, `none`, `required` or a tool's name; TGI's shapes too."""
    if choice is None:
        return "auto"
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        for key in ("FunctionName", "name"):
            name = choice.get(key) if name is None else name
        choice = name
    if not isinstance(choice, str):
        raise ValidationFailed(
            '`tool_choice` must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
            field="tool_choice",
        )
    return choice


def _spec(function: DeclaredFunction, index: int) -> ToolSpec:
    if not function.name:
        path = f"tools[{index}].function.name"
        raise ValidationFailed(f"`{path}` must not be empty", field=path)
    schema = function.parameters if function.parameters is not None else function.arguments
    if schema is not None and not isinstance(schema, dict):
        path = f"tools[{index}].function.parameters"
        raise ValidationFailed(f"`{path}` must be a JSON schema as an object", field=path)
    return ToolSpec(function.name, schema, bool(function.strict))


def _shown(raw: dict[str, Any], spec: ToolSpec) -> dict[str, Any]:
    """As the client wrote it, with the keys that templates look for."""
    function = {key: value for key, value in raw["function"].items() if value is not None and key != "arguments"}
    if "parameters" not in function and spec.parameters is not None:
        function["parameters"] = spec.parameters
    shown = {key: value for key, value in raw.items() if value is not None}
    return {"type": "function", **shown, "function": function}


def _shape_error(text: str) -> ValidationFailed:
    what, _, path = text.partition(" - at `$")
    field = f"tools{path.rstrip('`')}"
    return ValidationFailed(f"`{field}`: {what[:1].lower()}{what[1:]}", field=field)
