"""Placeholders become token ids and spans."""

from textmill_router.media.replacement import Rows, expand, fill, replacement_of
from textmill_router.request import token_array

ROW = 9
FIRST, SECOND = bytes(16), bytes([1]) * 16


def test_a_text_keeps_one_token_for_each_run() -> None:
    text = "<a>xxx<b>xx\nx"
    found = replacement_of(text, "x")
    assert (found.text, found.run_lengths, found.num_rows) == ("<a>x<b>x\nx", (3, 2, 1), 6)
    assert found.whole_text("x") == text


def test_placeholders_are_filled_in_order_over_pieces() -> None:
    assert fill(["a<i>b", "c", "<i>"], "<i>", ["ONE", "TWO<i>"]) == ("aONEb", "c", "TWO<i>")


def test_another_number_of_placeholders_is_no_prompt() -> None:
    assert fill(["<i>"], "<i>", []) is None
    assert fill(["none"], "<i>", ["ONE"]) is None


def test_each_run_gets_its_tokens_and_a_span() -> None:
    ids = token_array([1, ROW, 2, ROW, 3, ROW])
    found = expand(ids, ROW, [Rows(FIRST, (2, 3), (1, 2, 3)), Rows(SECOND, (1,))])
    assert found is not None
    assert found.ids.tolist() == [1, ROW, ROW, 2, ROW, ROW, ROW, 3, ROW]
    shown = [
        [(span.digest, span.start, span.num_tokens, span.first_row, span.grid) for span in spans]
        for spans in found.spans
    ]
    assert shown == [[(FIRST, 1, 2, 0, (1, 2, 3)), (FIRST, 4, 3, 2, (1, 2, 3))], [(SECOND, 8, 1, 0, None)]]


def test_a_token_of_rows_without_an_image_is_no_prompt() -> None:
    assert expand(token_array([1, ROW]), ROW, []) is None
    assert expand(token_array([1]), ROW, [Rows(FIRST, (1,))]) is None
