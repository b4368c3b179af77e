"""Rows of texts and pairs of texts whose answer is a score for each label."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import tokenizers

from textmill_router.errors import ValidationFailed
from textmill_router.request import token_array
from textmill_router.tasks.call import CallNotes
from textmill_router.tasks.model import TaskModel, too_long
from textmill_router.tasks.rows import Row
from textmill_router.tasks.text_reader import cut, pair_lengths, token_types
from textmill_router.tasks.token_parts import copy_of
from textmill_router.tasks.wishes import LabelWish

# What gives way when a row is too long: nothing, the longer text of a pair, or the first text alone.
CutRule = Literal["never", "longest", "first"]


@dataclass(frozen=True, slots=True)
class LabelText:
    """A text, or a pair of texts, with the path of the field for errors."""

    text: str
    path: str
    pair: str | None = None


@dataclass(slots=True)
class LabelRows:
    """The rows of texts. `advice` says in a refusal what would let a long text pass."""

    model: TaskModel
    texts: Sequence[LabelText]
    rule: CutRule
    advice: str
    notes: CallNotes = field(default_factory=CallNotes)

    async def rows(self) -> list[Row]:
        """Tokenise. Raises ValidationFailed for a row that is too long and must not be cut."""
        reader = self.model.reader
        distinct = list(
            dict.fromkeys(part for text in self.texts for part in (text.text, text.pair) if part is not None)
        )
        encoded = dict(zip(distinct, await reader.encode(distinct), strict=True))
        return [self._row_of(text, encoded) for text in self.texts]

    def _row_of(self, text: LabelText, encoded: dict[str, tokenizers.Encoding]) -> Row:
        first = encoded[text.text]
        second = None if text.pair is None else encoded[text.pair]
        room = self.model.room(is_pair=second is not None)
        num_first, num_second = len(first.ids), 0 if second is None else len(second.ids)
        if room is not None and num_first + num_second > room:
            first, second = self._cut(text, encoded, room)
        whole = self.model.reader.finish(first, second)
        if not whole.ids:
            raise ValidationFailed(f"`{text.path}` has no token; send another text", field=text.path)
        return Row(token_array(whole.ids), LabelWish(), token_types(whole, self.model.facts.num_token_types))

    def _cut(
        self, text: LabelText, encoded: dict[str, tokenizers.Encoding], room: int
    ) -> tuple[tokenizers.Encoding, tokenizers.Encoding | None]:
        # Encodings are cut in place, and other rows may have the same text, so the row gets encodings of its own.
        first = copy_of(encoded[text.text])
        second = None if text.pair is None else copy_of(encoded[text.pair])
        num_first, num_second = len(first.ids), 0 if second is None else len(second.ids)
        if self.rule == "never" or (self.rule == "first" and num_second >= room):
            raise too_long(text.path, num_first + num_second, room, self.advice)
        if second is None or self.rule == "first":
            num_first = room - num_second
        else:
            num_first, num_second = pair_lengths(num_first, num_second, room)
            cut(second, num_second)
        cut(first, num_first)
        self.notes.num_truncated += 1
        return first, second
