"""The formats in which models write tool calls and reasoning, and which of them a model uses."""

import re
from dataclasses import dataclass
from enum import Enum

from textmill_router.parsers.tools.command_r import COMMAND_R
from textmill_router.parsers.tools.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from textmill_router.parsers.tools.functools import FUNCTOOLS
from textmill_router.parsers.tools.generic_json import GENERIC_JSON
from textmill_router.parsers.tools.glm4 import GLM4
from textmill_router.parsers.tools.harmony import CHANNEL, END, HARMONY, MARKS, MESSAGE
from textmill_router.parsers.tools.hermes import HERMES
from textmill_router.parsers.tools.kimi_k2 import KIMI_K2
from textmill_router.parsers.tools.llama3_json import LLAMA3_JSON
from textmill_router.parsers.tools.minimax import MINIMAX_M1, MINIMAX_M2
from textmill_router.parsers.tools.mistral import MISTRAL
from textmill_router.parsers.tools.pythonic import PYTHONIC
from textmill_router.parsers.tools.qwen3_coder import QWEN3_CODER
from textmill_router.parsers.tools.tool_call_token import GRANITE, PHI4_MINI
from textmill_router.parsers.tools.tool_format import ToolFormat

_TOOLS_WORD = re.compile(r"\btools\b")

# The first format that a template teaches is that of the model. The last format is taken where a template teaches none.
TOOL_FORMATS: tuple[ToolFormat, ...] = (
    HARMONY,
    MISTRAL,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    KIMI_K2,
    COMMAND_R,
    FUNCTOOLS,
    PHI4_MINI,
    GRANITE,
    MINIMAX_M2,
    GLM4,
    QWEN3_CODER,
    MINIMAX_M1,
    HERMES,
    PYTHONIC,
    LLAMA3_JSON,
    GENERIC_JSON,
)


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The texts around the reasoning at the start of an answer."""

    opening: str
    closing: str


class ReasoningFormat(Enum):
    """How a model sets its reasoning apart. The values are those of --reasoning-parser."""

    THINK = "think"
    MISTRAL = "mistral"
    HARMONY = "harmony"
    COMMAND_R = "command_r"

    @property
    def tags(self) -> ReasoningTags:
        return _REASONING_TAGS[self]


_REASONING_TAGS = {
    ReasoningFormat.THINK: ReasoningTags("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningFormat.HARMONY: ReasoningTags(f"{CHANNEL}analysis{MESSAGE}", END),
    ReasoningFormat.COMMAND_R: ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
}
# Words of --reasoning-parser that other servers use, beside the own words of the formats.
_REASONING_ALIASES = {
    "deepseek_r1": ReasoningFormat.THINK,
    "deepseek-r1": ReasoningFormat.THINK,
    "qwen3": ReasoningFormat.THINK,
    "openai_gptoss": ReasoningFormat.HARMONY,
    "gpt-oss": ReasoningFormat.HARMONY,
}

ALL_MARKERS = frozenset(
    [marker for tools in TOOL_FORMATS for marker in tools.markers]
    + [
        tag
        for name in ReasoningFormat
        if name is not ReasoningFormat.HARMONY
        for tag in (name.tags.opening, name.tags.closing)
    ]
)

# Words of --tool-call-parser.
TOOL_FORMAT_NAMES = tuple(name for tools in TOOL_FORMATS for name in (tools.name, *tools.aliases))


# Words of --reasoning-parser.
REASONING_NAMES = (*(entry.value for entry in ReasoningFormat), *_REASONING_ALIASES)


def reasoning_format_named(name: str) -> ReasoningFormat:
    """Return the format that a word of --reasoning-parser means. Raises ValueError for an unknown word."""
    return _REASONING_ALIASES.get(name) or ReasoningFormat(name)


def tool_format_named(name: str) -> ToolFormat:
    """Return the format that a word of --tool-call-parser means. Raises KeyError for an unknown word."""
    for tools in TOOL_FORMATS:
        if name == tools.name or name in tools.aliases:
            return tools
    raise KeyError(name)


def markers_of(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> frozenset[str]:
    """Return the texts that must be shown to the parser even where they are special tokens."""
    marks = set(tools.markers) if tools is not None else set()
    if reasoning is ReasoningFormat.HARMONY:
        marks |= set(MARKS)
    elif reasoning is not None:
        marks |= {reasoning.tags.opening, reasoning.tags.closing}
    return frozenset(marks)


def takes_tools(template: str) -> bool:
    """Whether a chat template writes the request's tools itself."""
    return _TOOLS_WORD.search(template) is not None


def tool_format_of(template: str) -> ToolFormat:
    """Return the format that a chat template teaches, or generic JSON where the template teaches no known format."""
    return next(tools for tools in TOOL_FORMATS if tools.is_taught_by(template))


def is_known_form(template: str) -> bool:
    """Whether a chat template that takes tools teaches a format that is known."""
    return any(tools.is_taught_by(template) for tools in TOOL_FORMATS if tools is not GENERIC_JSON)


def reasoning_format_of(template: str) -> ReasoningFormat | None:
    """Return the format of the reasoning that a chat template opens or takes out, or None."""
    if HARMONY.is_taught_by(template):
        return ReasoningFormat.HARMONY
    for reasoning in (ReasoningFormat.COMMAND_R, ReasoningFormat.THINK, ReasoningFormat.MISTRAL):
        if reasoning.tags.closing in template:
            return reasoning
    return None


def has_ended_reasoning(prompt: str, reasoning: ReasoningFormat | None, begun: str = "") -> bool:
    """Whether a rendered prompt has opened and closed the reasoning, so that the model shall not think.

    The last tag tells, at the end of the prompt or in `begun`, the answer's part of the prompt.
    """
    return reasoning is not None and _last_tag(prompt, reasoning.tags, begun) == reasoning.tags.closing


def starts_in_reasoning(prompt: str, reasoning: ReasoningFormat | None, begun: str = "") -> bool:
    """Whether a rendered prompt has opened the reasoning already, so that the answer goes on inside the reasoning."""
    return reasoning is not None and _last_tag(prompt, reasoning.tags, begun) == reasoning.tags.opening


def _last_tag(prompt: str, tags: ReasoningTags, begun: str) -> str:
    """Return the last tag in the answer's part of the prompt, or an empty text."""
    end = prompt.rstrip()
    for tag in (tags.opening, tags.closing):
        if end.endswith(tag):
            return tag
    place, tag = max((begun.rfind(tag), tag) for tag in (tags.opening, tags.closing))
    return tag if place >= 0 else ""
