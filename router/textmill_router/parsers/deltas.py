"""The parts that a piece of output text adds to a chat message, and the message that all pieces make."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentText:
    """More text for the reader; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of the thoughts of the model before its answer; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins. `index` counts the calls of the message from 0; `id` is unique beyond the message."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """More of the arguments of call `index`; never empty. The pieces of a whole call, joined, are a JSON object."""

    index: int
    text: str


Delta = ContentText | ReasoningText | ToolCallStart | ToolArguments


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of a message. `arguments` is JSON text, which is unfinished if the answer was cut inside the text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """The message that deltas make. A part is None if no delta of its kind came."""

    content: str | None
    reasoning_content: str | None
    tool_calls: tuple[ToolCall, ...]


def collect(deltas: Iterable[Delta]) -> ParsedMessage:
    """Return the message of an answer that is not streamed, or of a stream that has ended."""
    content: list[str] = []
    reasoning: list[str] = []
    starts: list[ToolCallStart] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text):
                reasoning.append(text)
            case ToolCallStart():
                starts.append(delta)
                arguments.append([])
            case ToolArguments(index, text):
                arguments[index].append(text)
    return ParsedMessage(
        content="".join(content) if content else None,
        reasoning_content="".join(reasoning) if reasoning else None,
        tool_calls=tuple(
            ToolCall(start.id, start.name, "".join(pieces)) for start, pieces in zip(starts, arguments, strict=True)
        ),
    )


def merge(deltas: Iterable[Delta]) -> list[Delta]:
    """Join neighbours of one kind, so that a token brings one event for each kind of part."""
    merged: list[Delta] = []
    run: list[str] = []  # texts of the last entry, if that entry is a text

    def close_run() -> None:
        if len(run) > 1:
            last = merged[-1]
            text = "".join(run)
            if isinstance(last, ToolArguments):
                merged[-1] = ToolArguments(last.index, text)
            elif isinstance(last, ContentText):
                merged[-1] = ContentText(text)
            else:
                merged[-1] = ReasoningText(text)
        run.clear()

    for delta in deltas:
        if isinstance(delta, ToolCallStart):
            close_run()
            merged.append(delta)
            continue
        is_same = bool(run) and type(merged[-1]) is type(delta)
        if is_same and isinstance(delta, ToolArguments):
            last = merged[-1]
            is_same = isinstance(last, ToolArguments) and last.index == delta.index
        if not is_same:
            close_run()
            merged.append(delta)
        run.append(delta.text)
    close_run()
    return merged
