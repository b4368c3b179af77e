"""`tools` and `tool_choice` of a chat body: OpenAI's shapes and TGI's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import ChatBody, DeclaredFunction, DeclaredTool
from textmill_router.api.openai.legacy_functions import with_tools
from textmill_router.chat.tools import ToolChoice
from textmill_router.errors import ToolError, ValidationFailed
from textmill_router.http.json_shape import shape_error
from textmill_router.parsers.tools.tool_format import ToolSpec

_TOOLS = list[DeclaredTool]
_KEYWORDS = ("auto", "none", "required")
_MAX_NAME_CHARACTERS = 200  # each format of calls can write and read names of this length


@dataclass(frozen=True, slots=True)
class _Choice:
    """The choice of a body: which tools may be called (`names` None: each of them), and whether one must be."""

    mode: str  # "auto", "none" or "required"
    names: tuple[str, ...] | None = None
    is_one: bool = False  # the body names one tool and asks for its call


def tool_choice_of(body: ChatBody) -> ToolChoice | None:
    """None where no tool may be called. Raises ValidationFailed for a wrong shape, ToolError for an unknown name."""
    body = with_tools(body)
    choice = _choice(body.tool_choice)
    if not body.tools:
        # TGI's own shape stands without tools in the example of its published API.
        is_of_tgi = isinstance(body.tool_choice, dict) and "FunctionName" in body.tool_choice
        if body.tool_choice is not None and choice.mode != "none" and not is_of_tgi:
            raise ValidationFailed("`tool_choice` needs `tools`: add the tools, or leave it out", field="tool_choice")
        return None
    for index, tool in enumerate(body.tools):
        if (kind := tool.get("type")) not in (None, "function"):
            path = f"tools[{index}].type"
            raise ValidationFailed(
                f"`{path}` must be `function`, found {_shown_type(kind)}; leave the tool out", field=path
            )
    try:
        declared = msgspec.convert(body.tools, _TOOLS)
    except msgspec.ValidationError as error:
        raise shape_error(str(error), body.tools, "tools") from None
    specs = tuple(_spec(tool.function, index) for index, tool in enumerate(declared))
    _refuse_equal_names(specs)
    if choice.mode == "none":
        return None
    allowed = specs if choice.names is None else _named(specs, choice.names)
    return ToolChoice(
        shown=[_shown(raw, spec) for raw, spec in zip(body.tools, specs, strict=True)],
        specs=allowed[:1] if choice.is_one else allowed,
        is_narrowed=len(allowed) < len(specs),
        is_required=choice.mode == "required",
        # A named tool is one call, as at OpenAI, unless several are asked for.
        is_parallel=body.parallel_tool_calls is not False and (not choice.is_one or bool(body.parallel_tool_calls)),
        prompt=body.tool_prompt or None,
    )


def _choice(choice: object) -> _Choice:
    """OpenAI's shapes and TGI's. A text is a keyword before it is a tool's name; an object is never a keyword."""
    if choice is None:
        return _Choice("auto")
    if isinstance(choice, str):
        return _Choice(choice) if choice in _KEYWORDS else _Choice("required", (choice,), is_one=True)
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            return _allowed_tools(choice.get("allowed_tools"))
        name = _name_in(choice)
        if name is not None:
            return _Choice("required", (name,), is_one=True)
    raise ValidationFailed(
        '`tool_choice` must be "auto", "none", "required", {"type": "function", "function": {"name": ...}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}',
        field="tool_choice",
    )


def _allowed_tools(allowed: object) -> _Choice:
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    names = [_name_in(tool) if isinstance(tool, dict) else None for tool in tools] if isinstance(tools, list) else []
    known = tuple(name for name in names if name is not None)
    if mode not in ("auto", "required") or not known or len(known) < len(names):
        raise ValidationFailed(
            '`tool_choice.allowed_tools` must be {"mode": "auto" or "required", "tools": [{"type": "function", '
            '"function": {"name": ...}}, ...]} with at least one tool',
            field="tool_choice.allowed_tools",
        )
    return _Choice(mode, known)


def _name_in(value: Mapping[str, Any]) -> str | None:
    """The name of a tool in an object of OpenAI's or TGI's shape."""
    function = value.get("function")
    inner = function.get("name") if isinstance(function, dict) else None
    for name in (inner, value.get("FunctionName"), value.get("name")):
        if name is not None:
            return name if isinstance(name, str) else None
    return None


def _named(specs: Sequence[ToolSpec], names: Sequence[str]) -> tuple[ToolSpec, ...]:
    known = {spec.name for spec in specs}
    for name in names:
        if name not in known:
            raise ToolError(
                f"`tool_choice` names {name!r}, which is none of the tools: {', '.join(spec.name for spec in specs)}",
                field="tool_choice",
            )
    return tuple(spec for spec in specs if spec.name in names)


def _refuse_equal_names(specs: Sequence[ToolSpec]) -> None:
    """Raises ValidationFailed, because a call says its tool by the name alone."""
    first: dict[str, int] = {}
    for index, spec in enumerate(specs):
        if spec.name in first:
            path = f"tools[{index}].function.name"
            raise ValidationFailed(
                f"`{path}` is {spec.name!r}, as `tools[{first[spec.name]}].function.name` is: give each tool a name of "
                "its own",
                field=path,
            )
        first[spec.name] = index


def _spec(function: DeclaredFunction, index: int) -> ToolSpec:
    if not function.name:
        path = f"tools[{index}].function.name"
        raise ValidationFailed(f"`{path}` must not be empty", field=path)
    if len(function.name) > _MAX_NAME_CHARACTERS:
        path = f"tools[{index}].function.name"
        raise ValidationFailed(
            f"`{path}` must have at most {_MAX_NAME_CHARACTERS} characters, found {len(function.name)}", field=path
        )
    schema = function.parameters if function.parameters is not None else function.arguments
    if schema is not None and not isinstance(schema, dict):
        path = f"tools[{index}].function.parameters"
        raise ValidationFailed(f"`{path}` must be a JSON schema as an object", field=path)
    return ToolSpec(function.name, schema, bool(function.strict))


def _shown_type(kind: object) -> str:
    return f"`{kind[:40]}`" if isinstance(kind, str) else "a value that is no text"


def _shown(raw: dict[str, Any], spec: ToolSpec) -> dict[str, Any]:
    """As the client wrote it, with the keys that templates look for."""
    function = {key: value for key, value in raw["function"].items() if value is not None and key != "arguments"}
    if "parameters" not in function and spec.parameters is not None:
        function["parameters"] = spec.parameters
    shown = {key: value for key, value in raw.items() if value is not None}
    return {"type": "function", **shown, "function": function}
