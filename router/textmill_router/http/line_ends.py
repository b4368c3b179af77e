"""Characters that JSON need not escape and that readers of lines take for the end of a line."""

# NEXT LINE, LINE SEPARATOR, PARAGRAPH SEPARATOR: str.splitlines and httpx's iter_lines split there, an event stream
# does not. JSON escapes all other line ends anyway.
_NEXT_LINE, _SEPARATORS = b"\xc2\x85", b"\xe2\x80"  # the second is the start of both separators
_ESCAPES = ((_NEXT_LINE, b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


def escape_line_ends(data: bytes) -> bytes:
    """Return JSON, or events that hold JSON, in UTF-8, with these characters as escapes; the values stay the same.

    The characters can stand inside strings only.
    """
    if data.isascii() or not (_SEPARATORS in data or _NEXT_LINE in data):
        return data
    for character, escape in _ESCAPES:
        data = data.replace(character, escape)
    return data
