"""/tokenize and /decode of a model whose rows are texts, in the form of text-embeddings-inference.

The calls have no rows: their answers are made where other calls tokenise.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import tokenizers

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import Row

INLINE_TOKENS = 500  # told at once; more go to a thread, because they would hold up other calls
MAX_ID = (1 << 32) - 1  # the library's ids have 32 bits
Found = TypeVar("Found")


class TextTokensBody(msgspec.Struct, gc=False):
    """The body of /tokenize. `prompt_name` names a prompt of the model's files, which is put before each text."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeBody(msgspec.Struct, gc=False):
    """The body of /decode: the ids of one text or of several."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None


class TextToken(msgspec.Struct, gc=False):
    """A token with the characters where its text stands; special tokens that were added stand nowhere."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(slots=True)
class TokenizeCall:
    """The tokens of texts."""

    model: TaskModel
    texts: Sequence[str]  # with the prompt
    adds_special_tokens: bool
    task: str
    notes: CallNotes = field(default_factory=CallNotes)
    _content: bytes = b""

    @property
    def num_rows(self) -> int:
        return len(self.texts)

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.texts))

    async def rows(self) -> list[Row]:
        encodings = await self.model.reader.encode(self.texts)
        num_tokens = sum(len(encoding.ids) for encoding in encodings)
        self._content = await _in_thread_if_long(num_tokens, lambda: self._tell(encodings))
        return []

    def _tell(self, encodings: Sequence[tokenizers.Encoding]) -> bytes:
        return msgspec.json.encode(
            [self._tokens_of(text, encoding) for text, encoding in zip(self.texts, encodings, strict=True)]
        )

    def _tokens_of(self, text: str, encoding: tokenizers.Encoding) -> list[TextToken]:
        whole = self.model.reader.finish(encoding) if self.adds_special_tokens else encoding
        return [
            TextToken(token_id, self.model.reader.token_of(token_id), True, None, None)
            if is_special
            else TextToken(token_id, text[start:stop], False, start, stop)
            for token_id, (start, stop), is_special in zip(
                whole.ids, whole.offsets, whole.special_tokens_mask, strict=True
            )
        ]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        return Answer(self._content)


@dataclass(slots=True)
class DecodeCall:
    """The texts of ids."""

    model: TaskModel
    lists: Sequence[list[int]]
    skips_special: bool
    task: str
    notes: CallNotes = field(default_factory=CallNotes)
    _texts: list[str] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.lists)

    @property
    def num_characters(self) -> int:
        return 0

    async def rows(self) -> list[Row]:
        self._texts = await _in_thread_if_long(sum(map(len, self.lists)), self._decode)
        return []

    def _decode(self) -> list[str]:
        return [self.model.reader.text_of_ids(ids, skips_special=self.skips_special) for ids in self.lists]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        return Answer(self._texts)


def tokenize_call(body: TextTokensBody, model: TaskModel, shapes: ClientShapes) -> TokenizeCall:
    """Apply the rules of /tokenize. Raises ValidationFailed and TooManyRows."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not isinstance(body.inputs, str):
        model.check_count(len(texts), "inputs")
    for index, text in enumerate(texts):
        path = "inputs" if isinstance(body.inputs, str) else f"inputs[{index}]"
        model.check_text(text, path, may_be_empty=True)
    prompt = model.prompts.text_of(body.prompt_name, "prompt_name")
    adds_special_tokens = body.add_special_tokens is not False
    return TokenizeCall(model, [prompt + text for text in texts], adds_special_tokens, model.facts.task)


def decode_call(body: DecodeBody, model: TaskModel, shapes: ClientShapes) -> DecodeCall:
    """Apply the rules of /decode. Raises ValidationFailed and TooManyRows."""
    lists = [one for one in body.ids if isinstance(one, list)]
    single = [one for one in body.ids if isinstance(one, int)]
    if lists and single:
        raise ValidationFailed("`ids` must be a list of ids, or a list of such lists, found both", field="ids")
    is_single = not lists
    asked = [single] if is_single else lists
    model.check_count(len(asked), "ids")
    for index, ids in enumerate(asked):
        for place, token_id in enumerate(ids):
            if not 0 <= token_id <= MAX_ID or not model.reader.token_of(token_id):
                path = f"ids[{place}]" if is_single else f"ids[{index}][{place}]"
                raise ValidationFailed(f"`{path}` must be the id of a token, found {token_id}", field=path)
    return DecodeCall(model, asked, body.skip_special_tokens is not False, model.facts.task)


async def _in_thread_if_long(num_tokens: int, work: Callable[[], Found]) -> Found:
    return work() if num_tokens <= INLINE_TOKENS else await asyncio.to_thread(work)
