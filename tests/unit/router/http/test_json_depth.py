import json
import time

import pytest
from textmill_router.http.json_depth import MAX_JSON_DEPTH, is_too_deep


@pytest.mark.parametrize(
    ("opening", "closing", "depth"),
    [("[", "]", MAX_JSON_DEPTH), ('{"a":', "}", MAX_JSON_DEPTH), ('[{"a":', "}]", MAX_JSON_DEPTH // 2)],
)
def test_levels_are_counted_whatever_they_are_made_of(opening: str, closing: str, depth: int) -> None:
    assert not is_too_deep((opening * depth + "1" + closing * depth).encode())
    assert is_too_deep((opening * (depth + 1) + "1" + closing * (depth + 1)).encode())


@pytest.mark.parametrize(
    "value",
    [
        [[]] * 1000,
        ["[" * 1000],
        ['"' + "[" * 1000],
        ["\\" + "{" * 1000, "\\\\", '\\"[['],
        {"[" * 500 + '\\"': "{" * 500},
    ],
    ids=["wide", "in a string", "after a quote", "after backslashes", "in a key"],
)
def test_brackets_of_texts_and_neighbours_do_not_count(value: object) -> None:
    assert not is_too_deep(json.dumps(value).encode())


def test_string_without_an_end_is_looked_at_once() -> None:
    """A search for the end from each quote in the string would take five seconds here, and hours for 2 MB."""
    begin_s = time.process_time()
    assert not is_too_deep(b'["' + b"[" * 200 + b'\\"' * 20_000)
    assert time.process_time() - begin_s < 1
