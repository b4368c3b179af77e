"""What stands in a prompt in the place of an image, and how placeholders become token ids and spans.

A processor replaces the placeholder of an image by a text, in which the token of rows comes once for each row of the
tower's output: in one run, or in several with separators between them. A prompt is tokenised with one token for each
run, which then becomes as many tokens as the run has. The result is that of the whole text, because the token of rows
is a special token, at which a tokenizer cuts every text.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from textmill_router.media.media_item import Grid, MediaSpan


@dataclass(frozen=True, slots=True)
class Replacement:
    """The text of one image. `text` has the token of rows once for each run, and `run_lengths` has the runs' tokens."""

    text: str
    run_lengths: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """The tokens that stand for rows of the image."""
        return sum(self.run_lengths)

    def whole_text(self, row_text: str) -> str:
        """Return the text as the processor gave it."""
        first, *others = self.text.split(row_text)
        runs = (row_text * length + other for length, other in zip(self.run_lengths, others, strict=True))
        return first + "".join(runs)


def replacement_of(text: str, row_text: str) -> Replacement:
    """Read the text that a processor gave; `row_text` is the token of rows."""
    runs = re.compile(f"(?:{re.escape(row_text)})+")
    lengths = tuple(len(run.group()) // len(row_text) for run in runs.finditer(text))
    return Replacement(runs.sub(lambda _: row_text, text), lengths)


def fill(pieces: Sequence[str], placeholder: str, replacements: Sequence[str]) -> tuple[str, ...] | None:
    """Return the pieces of a prompt with the placeholders replaced in order, or None where their number differs."""
    if sum(piece.count(placeholder) for piece in pieces) != len(replacements):
        return None
    waiting = iter(replacements)
    filled = []
    for piece in pieces:
        first, *others = piece.split(placeholder)
        filled.append(first + "".join(next(waiting) + other for other in others))
    return tuple(filled)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one image of a prompt."""

    digest: bytes
    run_lengths: tuple[int, ...]
    grid: Grid | None = None


@dataclass(frozen=True, slots=True)
class ExpandedPrompt:
    """The ids of a prompt, and the spans of each of its images, in order."""

    ids: "array[int]"
    spans: tuple[tuple[MediaSpan, ...], ...]


def expand(ids: "array[int]", row_id: int, images: Sequence[Rows]) -> ExpandedPrompt | None:
    """Give each run its tokens. Returns None where the ids have another number of runs than the images."""
    if ids.count(row_id) != sum(len(image.run_lengths) for image in images):
        return None
    expanded: array[int] = array(ids.typecode)
    spans = []
    begin = 0
    for image in images:
        of_image = []
        first_row = 0
        for length in image.run_lengths:
            place = ids.index(row_id, begin)
            expanded.extend(ids[begin:place])
            of_image.append(MediaSpan(image.digest, len(expanded), length, first_row, image.grid))
            expanded.extend(array(ids.typecode, (row_id,)) * length)
            first_row += length
            begin = place + 1
        spans.append(tuple(of_image))
    expanded.extend(ids[begin:])
    return ExpandedPrompt(expanded, tuple(spans))
