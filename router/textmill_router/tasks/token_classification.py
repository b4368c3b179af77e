"""token-classification: the labels of the tokens of a text, and the entities that neighbouring tokens make."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import tokenizers

from textmill_router.errors import ValidationFailed
from textmill_router.request import token_array
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.entities import Strategy, TaggedToken, find_entities
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import Numbers, RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.text_reader import token_types
from textmill_router.tasks.token_parts import part_of
from textmill_router.tasks.windows import wanted_tokens, windows_of
from textmill_router.tasks.wishes import TokenLabelWish

TASK = "token-classification"
DEFAULT_STRIDE = 64
DEFAULT_STRATEGY: Strategy = "simple"


class TokenClassificationParameters(msgspec.Struct, gc=False):
    """The parameters of token-classification."""

    aggregation_strategy: Strategy | None = None
    ignore_labels: list[str] | None = None
    stride: int | None = None


class TokenClassificationBody(msgspec.Struct, gc=False):
    """The body of token-classification."""

    inputs: str | list[str]
    parameters: TokenClassificationParameters | None = None


@dataclass(frozen=True, slots=True)
class _TextTokens:
    """The tokens of one text. `num_before` are the special tokens before the text in a row, `num_rows` its windows."""

    encoding: tokenizers.Encoding
    num_before: int
    num_rows: int


@dataclass(slots=True)
class TokenClassificationCall:
    """A call with a row for each window of each text."""

    model: TaskModel
    texts: Sequence[str]
    is_single: bool
    strategy: Strategy
    ignored: frozenset[str]
    stride: int
    task: str = TASK
    notes: CallNotes = field(default_factory=CallNotes)
    _tokens: list[_TextTokens] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.texts)

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.texts))

    async def rows(self) -> list[Row]:
        reader, types = self.model.reader, self.model.facts.num_token_types
        rows: list[Row] = []
        for encoding in await reader.encode(self.texts):
            num_before, num_rows_before = 0, len(rows)
            windows = windows_of(len(encoding.ids), self.model.room(), self.stride)
            for window, wanted in zip(windows, wanted_tokens(windows), strict=True):
                whole = reader.finish(part_of(encoding, window.start, window.stop))
                sequences = whole.sequence_ids
                num_before = next((place for place, one in enumerate(sequences) if one is not None), 0)
                is_wanted = bytearray(len(sequences))
                for place in wanted:
                    is_wanted[num_before + place - window.start] = 1
                if wanted:  # a text of nothing but removed characters has no token
                    rows.append(
                        Row(token_array(whole.ids), TokenLabelWish(bytes(is_wanted)), token_types(whole, types))
                    )
            self._tokens.append(_TextTokens(encoding, num_before, len(rows) - num_rows_before))
        return rows

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        answers = []
        place = 0
        for text, tokens in zip(self.texts, self._tokens, strict=True):
            answers.append(self._entities(text, tokens, results[place : place + tokens.num_rows]))
            place += tokens.num_rows
        return Answer(answers[0] if self.is_single else answers)

    def _entities(self, text: str, tokens: _TextTokens, results: Sequence[RowResult]) -> list[dict[str, object]]:
        encoding, reader = tokens.encoding, self.model.reader
        scores: list[list[float]] = []
        for result in results:
            assert isinstance(result, Numbers)
            scores += result.runs()
        tagged = []
        for index, ((start, end), token_id, row) in enumerate(zip(encoding.offsets, encoding.ids, scores, strict=True)):
            word, reference = reader.token_of(token_id), text[start:end]
            if reader.marks_subwords:
                is_part = len(word) != len(reference)
            else:
                is_part = start > 0 and " " not in text[start - 1 : start + 1]
            if token_id == reader.special.unknown:
                word, is_part = reference, False
            tagged.append(TaggedToken(index + tokens.num_before, word, row, start, end, is_part))
        return find_entities(tagged, self.strategy, self.model.facts.labels, self.ignored, reader.text_of_tokens)


def token_classification_call(
    body: TokenClassificationBody, model: TaskModel, shapes: ClientShapes
) -> TokenClassificationCall:
    """Apply the rules of token-classification. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or TokenClassificationParameters()
    inputs = body.inputs
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, str):
        model.check_count(len(texts), "inputs")
    for index, text in enumerate(texts):
        model.check_text(text, "inputs" if isinstance(inputs, str) else f"inputs[{index}]")
    room = model.room()
    most = None if room is None else room // 2
    stride = parameters.stride
    if stride is not None and (stride < 0 or (most is not None and stride > most)):
        wanted = "at least 0" if most is None else f"0 to {most}, half of a window"
        raise ValidationFailed(f"`parameters.stride` must be {wanted}, found {stride}", field="parameters.stride")
    if stride is None:
        stride = DEFAULT_STRIDE if most is None else min(DEFAULT_STRIDE, most)
    ignored = parameters.ignore_labels
    return TokenClassificationCall(
        model,
        texts,
        isinstance(inputs, str),
        parameters.aggregation_strategy or DEFAULT_STRATEGY,
        frozenset(["O"] if ignored is None else ignored),
        stride,
    )
