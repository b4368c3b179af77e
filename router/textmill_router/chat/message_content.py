"""Operations on a message's content, which is one text or a list of parts.

A part is a text (`{"type": "text", "text": ...}`) or `IMAGE_PART`, in whose place the template writes a placeholder.
"""

from typing import Any

from textmill_router.chat.marked_text import with_marks_hidden

Content = str | list[dict[str, Any]]
# Without the image's data. Templates look at the type, at the key `image`, or at both.
IMAGE_PART: dict[str, Any] = {"type": "image", "image": True}


def text_of(content: Content) -> str:
    """Return the whole text of a content; the texts of parts are joined with nothing between them."""
    if isinstance(content, str):
        return content
    text: str = with_marks_hidden("".join(part["text"] for part in content if part is not IMAGE_PART))
    return text


def last_text(content: Content) -> str:
    """Return the text at the end of a content, which is the text of the last part."""
    if isinstance(content, str):
        return content
    text: str = content[-1]["text"] if content and content[-1] is not IMAGE_PART else ""
    return text


def with_more_text(content: Content, text: str) -> Content:
    """Return the content with `text` appended to its last text, or behind its last image."""
    if isinstance(content, str):
        return content + text
    if content and content[-1] is IMAGE_PART:
        return [*content, {"type": "text", "text": text}]
    return [*content[:-1], {"type": "text", "text": last_text(content) + text}]
