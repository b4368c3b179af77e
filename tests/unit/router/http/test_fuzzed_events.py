"""Any JSON in an event stays one event, for readers that split lines as the standard says and as Python does."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.http.line_ends import escape_line_ends

TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["\n\ndata: x", "\r\n\r\n", "\u2028", "\u2029", "\x85", "\x0b\x0c\x1c", "event: x", ":"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(values=st.lists(VALUES, min_size=1, max_size=4), is_ascii=st.booleans())
def test_events_are_read_back_as_they_were(values: list[Any], is_ascii: bool) -> None:
    sent = b"".join(b"data: " + json.dumps(one, ensure_ascii=is_ascii).encode() + b"\n\n" for one in values)
    stream = escape_line_ends(sent).decode()
    by_standard = [line for line in stream.split("\n") if line]
    by_python = [line for line in stream.splitlines() if line]
    for lines in (by_standard, by_python):
        assert [json.loads(line.removeprefix("data: ")) for line in lines] == values
