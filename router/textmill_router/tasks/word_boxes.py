"""The words of a page with their places, in the forms that clients send."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.model import TaskModel

PATH = "parameters.word_boxes"
MAX_EDGE = 1000  # thousandths of the page
# A list of pairs of word and box, or words and boxes by turns.
WordBoxes = list[list[str | float | list[float]] | str]


@dataclass(frozen=True, slots=True)
class Page:
    """The words of a page in reading order, and four edges for each: left, top, right and bottom."""

    words: tuple[str, ...]
    edges: tuple[int, ...]


def read_page(word_boxes: WordBoxes, model: TaskModel) -> Page:
    """Return the words and boxes. Raises ValidationFailed with the path of the first word that is wrong."""
    is_flat = any(isinstance(each, str) for each in word_boxes)
    pairs: Sequence[Sequence[object]]
    if is_flat:
        pairs = [(word_boxes[index], *word_boxes[index + 1 : index + 2]) for index in range(0, len(word_boxes), 2)]
    else:
        pairs = [each for each in word_boxes if isinstance(each, list)]
    if not pairs:
        raise ValidationFailed(f"`{PATH}` must hold at least one word, found an empty list", field=PATH)
    words: list[str] = []
    edges: list[int] = []
    for index, pair in enumerate(pairs):
        path = f"{PATH}[{2 * index if is_flat else index}]"
        word, box = _pair(pair, path)
        words.append(word)
        edges += box
    if not any(word.strip() for word in words):
        path = f"{PATH}[0]"
        raise ValidationFailed(
            f"`{path}` is blank, and so is each other word; send at least one word that can be read", field=path
        )
    model.check_text(" ".join(words), PATH)
    return Page(tuple(words), tuple(edges))


def _shown(value: Sequence[object]) -> str:
    return msgspec.json.encode(value).decode()[:64]


def _pair(pair: Sequence[object], path: str) -> tuple[str, list[int]]:
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], list) or len(pair[1]) != 4:
        raise ValidationFailed(
            f"`{path}` must be a word and its box, [word, [left, top, right, bottom]], found {_shown(pair)}",
            field=path,
        )
    left, top, right, bottom = pair[1]
    if not (0 <= left <= right <= MAX_EDGE and 0 <= top <= bottom <= MAX_EDGE):
        raise ValidationFailed(
            f"`{path}` must have a box with 0 <= left <= right <= {MAX_EDGE} and 0 <= top <= bottom <= {MAX_EDGE}, "
            f"found {_shown(pair[1])}",
            field=path,
        )
    return pair[0], [int(edge) for edge in pair[1]]
