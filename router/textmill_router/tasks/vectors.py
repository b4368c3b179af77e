"""Texts become vectors: what all routes share that give vectors of whole texts, of tokens, or of the vocabulary."""

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import tokenizers

from textmill_router.errors import ValidationFailed, WrongTask
from textmill_router.request import token_array
from textmill_router.tasks.call import CallNotes
from textmill_router.tasks.model import TaskModel, too_long
from textmill_router.tasks.row_results import Numbers, RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.text_reader import cut, token_types
from textmill_router.tasks.wishes import Head, SparseVectorWish, TokenVectorWish, VectorWish, Wish

Direction = Literal["right", "left", "Right", "Left"]
Encodings = Literal["float", "base64"]
Inputs = str | list[str | int | list[int]]


class VectorFields(msgspec.Struct, kw_only=True, gc=False):
    """How vectors are made. Absent fields leave the choice to the model's files."""

    normalize: bool | None = None
    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    dimensions: int | None = None
    encoding_format: Encodings | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A text or the token ids of one, with the path of the field for errors."""

    content: "str | array[int]"
    path: str


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """The checked options of a call."""

    head: Head
    prompt: str = ""
    dimensions: int = 0
    is_normalized: bool = True
    may_cut: bool = True
    cuts_left: bool = False
    as_base64: bool = False


def check_options(
    inner: VectorFields | None,
    model: TaskModel,
    *,
    outer: VectorFields | None = None,
    head: Head,
    normalize: bool | None = None,
) -> VectorOptions:
    """Return the options of a call: the fields of `parameters` (`inner`), then those beside `inputs` (`outer`).

    `normalize` is the default. Raises ValidationFailed, with the path of the field, and WrongTask.
    """

    def of(name: str) -> object:
        value = None if inner is None else getattr(inner, name)
        return value if value is not None or outer is None else getattr(outer, name)

    def path_of(name: str) -> str:
        return name if inner is None or getattr(inner, name) is None else f"parameters.{name}"

    check_head(model, head)
    dimensions, prompt_name, direction = of("dimensions"), of("prompt_name"), of("truncation_direction")
    width = model.facts.vector_width if head is Head.VECTORS else model.facts.token_vector_width
    if dimensions is not None:
        assert isinstance(dimensions, int)
        if head is Head.SPARSE_VECTORS or not 1 <= dimensions <= width:
            path = path_of("dimensions")
            raise ValidationFailed(
                f"`{path}` must be 1 to {width}, the width of the model's vectors, found {dimensions}", field=path
            )
    asked = of("normalize")
    default = model.facts.is_normalized if normalize is None else normalize
    return VectorOptions(
        head=head,
        prompt=model.prompts.text_of(prompt_name if isinstance(prompt_name, str) else None, path_of("prompt_name")),
        dimensions=dimensions or 0,
        is_normalized=default if asked is None else bool(asked),
        may_cut=of("truncate") is not False,
        cuts_left=str(direction).lower() == "left",
        as_base64=of("encoding_format") == "base64",
    )


def check_head(model: TaskModel, head: Head) -> None:
    """Raise WrongTask where the model cannot compute the head."""
    if head.value not in model.facts.heads:
        raise WrongTask(f"the model's task is {model.facts.task}, and it gives no {head.value.replace('_', ' ')}")


def main_head(model: TaskModel) -> Head:
    """Return whether the model gives a vector of a text, or, without pooling, only one of each token."""
    return Head.VECTORS if Head.VECTORS.value in model.facts.heads else Head.TOKEN_VECTORS


def read_inputs(inputs: Inputs, model: TaskModel, path: str) -> tuple[list[Text], bool]:
    """Return the texts of a call, and whether the call has one text alone. Raises ValidationFailed, TooManyRows."""
    if isinstance(inputs, str):
        model.check_text(inputs, path)
        return [Text(inputs, path)], True
    model.check_count(len(inputs) if not inputs or not isinstance(inputs[0], int) else 1, path)
    if all(isinstance(item, int) for item in inputs):
        return [Text(_checked_ids(inputs, model, path), path)], True
    texts = []
    for index, item in enumerate(inputs):
        place = f"{path}[{index}]"
        if isinstance(item, str):
            model.check_text(item, place)
            texts.append(Text(item, place))
        elif isinstance(item, list):
            texts.append(Text(_checked_ids(item, model, place), place))
        else:
            raise ValidationFailed(f"`{place}` must be a text or a list of token ids, found a number", field=place)
    return texts, False


def _checked_ids(ids: Sequence[object], model: TaskModel, path: str) -> "array[int]":
    if not ids:
        raise ValidationFailed(f"`{path}` must hold at least one token id, found an empty list", field=path)
    for index, value in enumerate(ids):
        if not isinstance(value, int) or not 0 <= value < model.facts.vocab_size:
            shown = value if isinstance(value, int) else type(value).__name__
            raise ValidationFailed(
                f"`{path}[{index}]` must be an id of the model's vocabulary, 0 to {model.facts.vocab_size - 1}, "
                f"found {shown}",
                field=f"{path}[{index}]",
            )
    return token_array([value for value in ids if isinstance(value, int)])


@dataclass(slots=True)
class VectorRows:
    """The rows of texts, and the vectors that their results hold."""

    model: TaskModel
    texts: Sequence[Text]
    options: VectorOptions
    notes: CallNotes = field(default_factory=CallNotes)

    @property
    def num_characters(self) -> int:
        return sum(len(text.content) for text in self.texts if isinstance(text.content, str))

    async def rows(self) -> list[Row]:
        """Tokenise. Raises ValidationFailed for a text that is too long and must not be cut."""
        options, reader = self.options, self.model.reader
        encodings = iter(
            await reader.encode([options.prompt + text.content for text in self.texts if isinstance(text.content, str)])
        )
        wish = self._wish()
        rows = []
        for text in self.texts:
            if isinstance(text.content, str):
                rows.append(self._row_of(text, next(encodings), wish))
            else:
                rows.append(Row(self._cut_ids(text, text.content), wish))
        return rows

    def _row_of(self, text: Text, encoding: tokenizers.Encoding, wish: Wish) -> Row:
        room = self.model.room()
        num_tokens = len(encoding.ids)
        if room is not None and cut(encoding, room, "left" if self.options.cuts_left else "right"):
            self._note_cut(text.path, num_tokens, room)
        whole = self.model.reader.finish(encoding)
        if not whole.ids:
            raise ValidationFailed(f"`{text.path}` has no token; send another text", field=text.path)
        return Row(token_array(whole.ids), wish, token_types(whole, self.model.facts.num_token_types))

    def _cut_ids(self, text: Text, ids: "array[int]") -> "array[int]":
        most = self.model.max_row_tokens
        if most is None or len(ids) <= most:
            return ids
        self._note_cut(text.path, len(ids), most)
        return ids[-most:] if self.options.cuts_left else ids[:most]

    def _note_cut(self, path: str, num_tokens: int, most: int) -> None:
        if not self.options.may_cut:
            raise too_long(path, num_tokens, most, "shorten the text, or leave out `truncate`")
        self.notes.num_truncated += 1

    def _wish(self) -> Wish:
        options = self.options
        if options.head is Head.TOKEN_VECTORS:
            return TokenVectorWish()
        if options.head is Head.SPARSE_VECTORS:
            return SparseVectorWish()
        return VectorWish(options.dimensions, options.is_normalized, self._prompt_length())

    def _prompt_length(self) -> int:
        """Return the first tokens of a row that the prompt takes, special tokens before the prompt included."""
        if not self.options.prompt:
            return 0
        reader = self.model.reader
        bare = reader.ids_of(self.options.prompt)
        return len(bare) + _num_before(reader.finish(reader.encode_now(self.options.prompt)))

    def vectors(self, results: Sequence[RowResult]) -> list[object]:
        """Return the vector of each row as a JSON value; with vectors of tokens one list more."""
        found: list[object] = []
        for result in results:
            assert isinstance(result, Numbers)
            if self.options.head is Head.TOKEN_VECTORS:
                found.append([self._token_vector(run) for run in result.runs()])
            elif self.options.as_base64:
                found.append(as_base64(result.values))
            else:
                found.append(result.values.tolist())
        return found

    def _token_vector(self, numbers: list[float]) -> list[float]:
        if self.options.dimensions:
            numbers = numbers[: self.options.dimensions]
        if not self.options.is_normalized:
            return numbers
        length = math.hypot(*numbers) or 1.0
        return [number / length for number in numbers]


def _num_before(encoding: tokenizers.Encoding) -> int:
    """Return how many special tokens stand before the text."""
    sequences = encoding.sequence_ids
    return next((place for place, sequence in enumerate(sequences) if sequence is not None), 0)


def as_base64(values: "array[float]") -> str:
    """Return the numbers as little-endian 32-bit floats in base64."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()
