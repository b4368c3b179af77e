"""A text with marks answers as Python's str without them, and keeps its marks between its characters."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.chat.marked_text import MARK, MarkedText, with_marks_hidden

ALPHABET = "aB1 \n<|é"
MARKED = st.text(ALPHABET + MARK, max_size=10).map(MarkedText)
PART = st.text(ALPHABET, max_size=2)
# Arguments by the name of a method; methods that are not named take none.
ARGUMENTS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    **dict.fromkeys(("count", "find", "rfind", "index", "rindex", "startswith", "endswith"), st.tuples(PART)),
    **dict.fromkeys(("removeprefix", "removesuffix", "__contains__"), st.tuples(PART)),
    **dict.fromkeys(("__add__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"), st.tuples(PART)),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), st.tuples(st.none() | PART)),
    **dict.fromkeys(("partition", "rpartition"), st.tuples(PART.filter(bool))),
    **dict.fromkeys(("split", "rsplit"), st.tuples(st.none() | PART.filter(bool), st.integers(-1, 3))),
    **dict.fromkeys(("center", "ljust", "rjust"), st.tuples(st.integers(0, 12), st.sampled_from("x "))),
    **dict.fromkeys(("__mul__", "__rmul__"), st.tuples(st.integers(-1, 3))),
    "zfill": st.tuples(st.integers(0, 12)),
    "replace": st.tuples(PART, PART, st.integers(-1, 3)),
    "join": st.tuples(st.lists(PART, max_size=3)),
    "splitlines": st.tuples(st.booleans()),
    "expandtabs": st.just(()),
    "translate": st.just(({97: "x"},)),
    "format_map": st.just(({},)),
    "__format__": st.sampled_from(["", ">12"]).map(lambda form: (form,)),
    "__mod__": st.just(((),)),
    "__getitem__": st.tuples(st.integers(-12, 12) | st.slices(12)),
}
OWN = {"__new__", "__doc__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__dir__"}
OWN |= {"__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__sizeof__", "__init_subclass__"}
OWN |= {"__subclasshook__", "maketrans", "__rmod__"}


def clean(value: Any) -> Any:
    if isinstance(value, str):
        return str.replace(value, MARK, "")
    if isinstance(value, list | tuple):
        return type(value)(map(clean, value))
    return value


def outcome(method: Any, *args: Any) -> Any:
    try:
        return method(*args)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        return type(error)


@pytest.mark.parametrize("name", sorted(set(dir(str)) - OWN))
@given(data=st.data(), text=MARKED)
@settings(max_examples=60, deadline=None)
def test_methods_answer_as_those_of_the_text_without_marks(name: str, data: st.DataObject, text: MarkedText) -> None:
    args = data.draw(ARGUMENTS.get(name, st.just(())))
    if name == "__iter__":
        assert [clean(part) for part in text] == list(clean(text))
        return
    assert clean(outcome(getattr(text, name), *args)) == outcome(getattr(clean(text), name), *args)


@given(text=MARKED, other=MARKED)
@settings(max_examples=100, deadline=None)
def test_arguments_may_have_marks_too(text: MarkedText, other: MarkedText) -> None:
    assert (other in text) == (clean(other) in clean(text))
    assert text.find(other) == clean(text).find(clean(other))
    assert (text == other, text < other) == (clean(text) == clean(other), clean(text) < clean(other))
    assert clean(text.strip(other)) == clean(text).strip(clean(other))
    assert clean(text.replace(other, "x")) == clean(text).replace(clean(other), "x")
    assert clean("(" + text + other) == "(" + clean(text) + clean(other)
    assert clean("%s|" % text) == f"{clean(text)}|"  # noqa: UP031 - the operator is what is tried
    assert {clean(text): 1}.get(text) == 1
    assert clean(str([text])) == str([clean(text)])


@given(text=MARKED, data=st.data())
@settings(max_examples=200, deadline=None)
def test_parts_keep_the_marks_between_their_characters(text: MarkedText, data: st.DataObject) -> None:
    """Counted by an expression over all characters: each mark of the whole is a mark of the part that holds it."""
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    if start == stop:
        return
    pairs = re.findall(f"({MARK}*)([^{MARK}])", "".join([text, "$"]))
    wanted = [bool(marks) for marks, _ in pairs[start + 1 : stop]]
    found = re.findall(f"({MARK}*)([^{MARK}])", "".join([text[start:stop], "$"]))
    assert [bool(marks) for marks, _ in found[1:-1]] == wanted
    assert bool(found[0][0]) >= (start > 0)
    assert bool(found[-1][0]) >= (stop < len(text))


@pytest.mark.parametrize("name", ["upper", "lower", "title", "swapcase"])
def test_texts_of_other_characters_are_marked_everywhere(name: str) -> None:
    made = getattr(MarkedText(f"ab{MARK}"), name)()
    assert "".join([made]) == MARK + MARK.join(getattr("ab", name)()) + MARK


def test_marks_are_hidden_once_they_are_in_a_text() -> None:
    assert type(with_marks_hidden("ab")) is str
    hidden = with_marks_hidden(f"a{MARK}b")
    assert isinstance(hidden, MarkedText)
    assert hidden == "ab"
    assert with_marks_hidden([hidden]) == [hidden]
