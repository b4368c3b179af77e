"""The formats in which models write tool calls and reasoning, and which of them a model uses."""

import re
from dataclasses import dataclass
from enum import Enum

_TOOLS_WORD = re.compile(r"\btools\b")


class ToolFormat(Enum):
    """How a model writes a tool call. The values are those of --tool-call-parser."""

    HERMES = "hermes"  # <tool_call>{"name": ..., "arguments": {...}}</tool_call>; Qwen 2.5 and 3 too
    LLAMA3_JSON = "llama3_json"  # {"name": ..., "parameters": {...}}, several parted by ";", or after <|python_tag|>
    MISTRAL = "mistral"  # [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...] or [TOOL_CALLS]name{...}
    JSON = "json"  # an object or an array of objects as in the two above, in the midst of text


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What stands around the reasoning at the start of an answer."""

    opening: str
    closing: str


class ReasoningFormat(Enum):
    """How a model sets its reasoning apart. The values are those of --reasoning-parser."""

    THINK = "think"  # <think>...</think>
    MISTRAL = "mistral"  # [THINK]...[/THINK]

    @property
    def tags(self) -> ReasoningTags:
        return _REASONING_TAGS[self]


_REASONING_TAGS = {
    ReasoningFormat.THINK: ReasoningTags("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ReasoningTags("[THINK]", "[/THINK]"),
}

# Texts that are special tokens in some vocabularies and yet must reach the parser.
_TOOL_MARKERS = {
    ToolFormat.HERMES: ("<tool_call>", "</tool_call>"),
    ToolFormat.LLAMA3_JSON: ("<|python_tag|>",),
    ToolFormat.MISTRAL: ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ToolFormat.JSON: (),
}


ALL_MARKERS = frozenset(
    [marker for markers in _TOOL_MARKERS.values() for marker in markers]
    + [tag for tags in _REASONING_TAGS.values() for tag in (tags.opening, tags.closing)]
)


def markers_of(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> frozenset[str]:
    """Texts of tokens that must be shown to the parser even where they are special tokens."""
    marks = set(_TOOL_MARKERS[tools]) if tools is not None else set()
    if reasoning is not None:
        marks |= {reasoning.tags.opening, reasoning.tags.closing}
    return frozenset(marks)


def takes_tools(template: str) -> bool:
    """Whether a chat template writes the request's tools itself."""
    return _TOOLS_WORD.search(template) is not None


def tool_format_of(template: str) -> ToolFormat:
    """The format that a chat template teaches; generic JSON where it teaches none that is known."""
    if "[TOOL_CALLS]" in template:
        return ToolFormat.MISTRAL
    if "<tool_call>" in template:
        return ToolFormat.HERMES
    if "<|python_tag|>" in template or ("<|start_header_id|>" in template and takes_tools(template)):
        return ToolFormat.LLAMA3_JSON
    return ToolFormat.JSON


def reasoning_format_of(template: str) -> ReasoningFormat | None:
    """The format of the reasoning that a chat template opens or takes out; None where it speaks of none."""
    for reasoning in ReasoningFormat:
        if reasoning.tags.closing in template:
            return reasoning
    return None


def has_ended_reasoning(prompt: str, reasoning: ReasoningFormat | None) -> bool:
    """Whether a rendered prompt has opened and closed the reasoning: the model shall not think."""
    return reasoning is not None and prompt.rstrip().endswith(reasoning.tags.closing)


def starts_in_reasoning(prompt: str, reasoning: ReasoningFormat | None) -> bool:
    """Whether a rendered prompt has opened the reasoning already: the answer goes on inside it."""
    return reasoning is not None and prompt.rstrip().endswith(reasoning.tags.opening)
