"""Long texts are divided where a speaker would pause, and nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textmill_shard.tasks.text_parts import divide_text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("short", ["short"]),
        ("", [""]),
        ("One two. Three four five", ["One two. ", "Three four five"]),
        ("One two, three four five", ["One two, ", "three four five"]),
        ("One two three four five", ["One two three ", "four five"]),
        ("a" * 35, ["a" * 15, "a" * 15, "a" * 5]),
        ("こんにちは。元気ですか、今日は。はい", ["こんにちは。", "元気ですか、今日は。はい"]),
        ("line\nline two is here", ["line\n", "line two is ", "here"]),
        ("He said “yes.” And she did", ["He said “yes.” ", "And she did"]),
    ],
)
def test_a_text_is_divided_at_the_best_place(text: str, parts: list[str]) -> None:
    assert divide_text(text, 15) == parts


@given(st.text(max_size=300), st.integers(1, 40))
def test_the_parts_are_the_text_and_none_is_too_long(text: str, most: int) -> None:
    parts = divide_text(text, most)
    assert "".join(parts) == text
    assert all(0 < len(part) <= most for part in parts) or text == ""
