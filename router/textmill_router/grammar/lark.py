"""Writes pieces of grammars in llguidance's dialect of Lark."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Nothing, one space, or a new line and its indentation: a small model that is free to write blanks may never stop.
JSON_BLANKS = r"( |\n[ \t]{0,32})?"
# Alternatives of `oneOf` that could match together are let through as those of `anyOf`: the finished answer is checked.
JSON_OPTIONS: Mapping[str, Any] = {"whitespace_pattern": JSON_BLANKS, "lenient": False, "coerce_one_of": True}
ANY_TEXT = "(?s:.*)"
SPACES = r"/[ \t\r\n]*/"


def json_rule(schema_text: str) -> str:
    """Return the body of a rule that matches the JSON of a schema, whose text is that of an object."""
    assert schema_text.startswith("{"), schema_text[:20]
    comma = "" if schema_text == "{}" else ","
    # Of two keys of one name the library reads the last: a request does not set its own options.
    return f'%json {schema_text[:-1]}{comma}"x-guidance":{json.dumps(JSON_OPTIONS)}}}'


def regex_rule(expression: str) -> str:
    """Return the body of a rule that matches what the regular expression matches."""
    return f"/{''.join(_between_slashes(expression))}/"


def text_without(marker: str) -> str:
    """Return the body of a terminal that matches any text without the marker."""
    return f"/{ANY_TEXT}/ & ~/{ANY_TEXT}{escape(marker)}{ANY_TEXT}/"


def literal(text: str) -> str:
    """Return the part of a rule that matches exactly this text."""
    return f" {json.dumps(text, ensure_ascii=False)}" if text else ""


def marked(text: str, marker_ids: Mapping[str, int]) -> str:
    """Return the part of a rule that matches a tag: as one token where the tag is a token, else as text."""
    token_id = marker_ids.get(text)
    return literal(text) if token_id is None else f"<[{token_id}]>"


def escape(text: str) -> str:
    """Return the text as a part of a regular expression between slashes."""
    return "".join(_escaped_characters(text))


def _escaped_characters(text: str) -> Iterator[str]:
    for char in text:
        if char.isalnum() or char in " _":
            yield char
        elif char == "\n":
            yield r"\n"
        else:
            yield f"\\x{{{ord(char):x}}}"


def _between_slashes(expression: str) -> Iterator[str]:
    """Yield the characters of an expression, escaped where a rule cannot hold the character."""
    is_escaped = False
    for char in expression:
        if char == "\n":
            yield "n" if is_escaped else r"\n"
        elif char == "/" and not is_escaped:
            yield r"\/"
        else:
            yield char
        is_escaped = char == "\\" and not is_escaped
