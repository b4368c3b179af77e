"""Operations on a message's content, which is one text or a list of text parts (`{"type": "text", "text": ...}`)."""

from typing import Any

from textmill_router.chat.marked_text import with_marks_hidden

Content = str | list[dict[str, Any]]


def text_of(content: Content) -> str:
    """Return the whole text of a content; the texts of parts are joined with nothing between them."""
    return content if isinstance(content, str) else with_marks_hidden("".join(part["text"] for part in content))


def last_text(content: Content) -> str:
    """Return the text at the end of a content, which is the text of the last part."""
    if isinstance(content, str):
        return content
    text: str = content[-1]["text"] if content else ""
    return text


def with_more_text(content: Content, text: str) -> Content:
    """Return the content with `text` appended to its last text."""
    if isinstance(content, str):
        return content + text
    return [*content[:-1], {"type": "text", "text": last_text(content) + text}]
