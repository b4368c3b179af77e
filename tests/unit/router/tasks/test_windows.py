"""Windows cover a text as the library cuts it, and each token belongs to the window where it is farther from a cut."""

from hypothesis import given
from hypothesis import strategies as st
from textmill_router.tasks.windows import Window, wanted_tokens, windows_of

from tests.fakes.word_tokenizer import make_word_tokenizer


def test_a_text_that_fits_is_one_window() -> None:
    assert windows_of(5, 5, 2) == [Window(0, 5)]
    assert windows_of(5, None, 2) == [Window(0, 5)]
    assert wanted_tokens([Window(0, 5)]) == [range(0, 5)]


def test_overlaps_are_divided_in_the_middle() -> None:
    windows = windows_of(14, 6, 2)
    assert windows == [Window(0, 6), Window(4, 10), Window(8, 14)]
    assert wanted_tokens(windows) == [range(0, 5), range(5, 9), range(9, 14)]


@given(count=st.integers(1, 200), room=st.integers(2, 40), part=st.floats(0, 0.99))
def test_windows_are_those_of_the_tokenizers_library(count: int, room: int, part: float) -> None:
    stride = int(part * room)
    tokenizer = make_word_tokenizer()
    encoding = tokenizer.encode(" ".join(["dog"] * count), add_special_tokens=False)
    encoding.truncate(room, stride=stride)
    lengths = [len(encoding.ids), *(len(one.ids) for one in encoding.overflowing)]
    windows = windows_of(count, room, stride)
    assert [window.stop - window.start for window in windows] == lengths


@given(count=st.integers(1, 300), room=st.integers(2, 40), part=st.floats(0, 0.5))
def test_each_token_has_one_window_where_it_is_farthest_from_a_cut(count: int, room: int, part: float) -> None:
    stride = int(part * room)
    windows = windows_of(count, room, stride)
    wanted = wanted_tokens(windows)
    assert [token for tokens in wanted for token in tokens] == list(range(count))

    def distance(window: Window, token: int) -> int:
        left = count if window.start == 0 else token - window.start
        right = count if window.stop == count else window.stop - 1 - token
        return min(left, right)

    for window, tokens in zip(windows, wanted, strict=True):
        for token in tokens:
            rivals = [distance(other, token) for other in windows if other.start <= token < other.stop]
            assert distance(window, token) == max(rivals)
