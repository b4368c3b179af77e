"""Divides a long text into parts, each of which is spoken in a forward pass of bounded memory."""

import re

# Where a text is divided, the best place first: after a sentence, after a clause, between words.
_BREAKS = (re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]|\n+"), re.compile(r"[,;:–—]\s+|[、，；：]"), re.compile(r"\s+"))


def divide_text(text: str, max_characters: int) -> list[str]:
    """Return the parts, which together are the text. A text that is short enough is one part."""
    parts = []
    while len(text) > max_characters:
        end = _end_of_part(text, max_characters)
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text]


def _end_of_part(text: str, most: int) -> int:
    for places in _BREAKS:
        ends = [match.end() for match in places.finditer(text, 0, most + 1) if match.end() <= most]
        if ends:
            return ends[-1]
    return most
