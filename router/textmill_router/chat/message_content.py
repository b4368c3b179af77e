"""A message's content: one text, or a list of text parts (`{"type": "text", "text": ...}`), as a template reads it."""

from typing import Any

from textmill_router.chat.marked_text import with_marks_hidden

Content = str | list[dict[str, Any]]


def text_of(content: Content) -> str:
    """All of the text."""
    return content if isinstance(content, str) else with_marks_hidden("".join(part["text"] for part in content))


def last_text(content: Content) -> str:
    """The text at the end: of the last part."""
    if isinstance(content, str):
        return content
    text: str = content[-1]["text"] if content else ""
    return text


def with_more_text(content: Content, text: str) -> Content:
    """The content with this behind its text."""
    if isinstance(content, str):
        return content + text
    return [*content[:-1], {"type": "text", "text": last_text(content) + text}]
