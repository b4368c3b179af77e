"""Stop strings compared with a formula on the whole text: the first end of any match, whatever the pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.text.stop_strings import StopStrings


def feed(stops: StopStrings, pieces: list[str]) -> list[str]:
    """Return the text that each piece releases, up to a match, or else with the rest at the end."""
    released = []
    for piece in pieces:
        released.append(stops.push(piece))
        if stops.is_matched:
            return released
    return [*released, stops.flush()]


def expected_text(text: str, stops: tuple[str, ...], keep_match: bool) -> str:
    """Return the text up to the first character at which it ends with a stop string; the longest such string counts."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[:end] if keep_match else text[: end - max(map(len, matches))]
    return text


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
def test_text_does_not_depend_on_the_cut_into_tokens(pieces: list[str], stops: list[str], keep_match: bool) -> None:
    found = "".join(feed(StopStrings(stops, keep_match), pieces))
    assert found == expected_text("".join(pieces), tuple(stops), keep_match)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.text("abc", max_size=4), st.booleans()), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
def test_hidden_pieces_are_searched_and_not_shown(
    pieces: list[tuple[str, bool]], stops: list[str], keep_match: bool
) -> None:
    """The whole text is searched for a match, and only characters of shown pieces are in the result."""
    matcher = StopStrings(stops, keep_match)
    found = ""
    for piece, is_hidden in pieces:
        found += matcher.push(piece, is_hidden)
        if matcher.is_matched:
            break
    else:
        found += matcher.flush()
    whole = expected_text("".join(piece for piece, _ in pieces), tuple(stops), keep_match)
    is_shown = [not is_hidden for piece, is_hidden in pieces for _ in piece]
    assert found == "".join(character for character, shown in zip(whole, is_shown, strict=False) if shown)


@pytest.mark.parametrize(("keep_match", "text"), [(True, "one STOP"), (False, "one ")])
def test_match_inside_a_token(keep_match: bool, text: str) -> None:
    stops = StopStrings(("STOP",), keep_match)
    assert feed(stops, ["one ", "STOPPED"]) == ["one ", text[4:]]
    assert stops.is_matched


@pytest.mark.parametrize(
    ("keep_match", "released"), [(True, ["one S", "TO", "P"]), (False, ["one ", "", ""])], ids=["native", "v1"]
)
def test_match_across_tokens(keep_match: bool, released: list[str]) -> None:
    assert feed(StopStrings(("STOP",), keep_match), ["one S", "TO", "Px"]) == released


def test_only_a_possible_prefix_is_held_back() -> None:
    stops = StopStrings(("\n\nUser:",), keep_match=False)
    assert feed(stops, ["hello\n", "\nUse", "ful"]) == ["hello", "", "\n\nUseful", ""]


def test_shorter_prefix_stays_held_when_a_longer_one_fails() -> None:
    stops = StopStrings(("aab",), keep_match=False)
    assert feed(stops, ["a", "a", "a", "c"]) == ["", "", "a", "aac", ""]
    assert feed(StopStrings(("abac",), keep_match=False), ["aab", "x"]) == ["a", "abx", ""]


def test_held_text_comes_out_at_the_end() -> None:
    assert feed(StopStrings(("END",), keep_match=False), ["the E", "N"]) == ["the ", "", "EN"]


def test_native_holds_nothing_back() -> None:
    assert feed(StopStrings(("END",), keep_match=True), ["the E", "N"]) == ["the E", "N", ""]
