"""The characters at which lines end for Python, in answers of JSON."""

import json

import pytest
from textmill_router.http.line_ends import escape_line_ends

# All characters that JSON may hold unescaped and at which `str.splitlines` splits, found by a try of each character.
LINE_ENDS = [character for character in map(chr, range(0x20, 0x110000)) if len(f"a{character}b".splitlines()) > 1]


def test_the_characters_are_those_of_pythons_documentation() -> None:
    assert LINE_ENDS == ["\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("text", ["", "plain", "é\u2027\u202a", *LINE_ENDS, "".join(LINE_ENDS) * 2, "\\\u2028"])
def test_escaped_json_is_one_line_of_the_same_value(text: str) -> None:
    data = json.dumps({text: text}, ensure_ascii=False).encode()
    escaped = escape_line_ends(data)
    assert len(escaped.decode().splitlines()) == 1
    assert json.loads(escaped) == {text: text}
    if not set(text) & set(LINE_ENDS):
        assert escaped is data or escaped == data
