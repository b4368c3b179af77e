"""text-classification, and /predict of embedding servers."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.label_rows import LabelRows, LabelText
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.scores import Function, apply, best_first, default_function, logits_of

TASK = "text-classification"
ADVICE = "shorten the text, or send `truncation: true` in `parameters`"


class TextPair(msgspec.Struct, gc=False):
    """A text, and a second text that belongs to the first."""

    text: str
    text_pair: str | None = None


class ClassificationParameters(msgspec.Struct, gc=False):
    """The parameters of text-classification."""

    top_k: int | None = None
    function_to_apply: Function | None = None
    truncation: bool | None = None


class ClassificationBody(msgspec.Struct, gc=False):
    """The body of text-classification."""

    inputs: str | TextPair | list[str | TextPair]
    parameters: ClassificationParameters | None = None


class PredictBody(msgspec.Struct, gc=False):
    """The body of /predict: a text, a pair, or a list whose elements are lists of one text or of two."""

    inputs: str | list[str | list[str]]
    raw_scores: bool | None = None
    truncate: bool | None = None


@dataclass(slots=True)
class ClassificationCall:
    """A call whose answer has a list of labels for each row, or with `is_single` the list of its one row."""

    source: LabelRows
    function: Function
    top_k: int | None
    is_single: bool
    task: str = TASK

    @property
    def num_rows(self) -> int:
        return len(self.source.texts)

    @property
    def num_characters(self) -> int:
        return sum(len(text.text) + len(text.pair or "") for text in self.source.texts)

    @property
    def notes(self) -> CallNotes:
        return self.source.notes

    async def rows(self) -> list[Row]:
        return await self.source.rows()

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        labels = self.source.model.facts.labels
        found = [best_first(labels, apply(self.function, logits_of(result)), self.top_k) for result in results]
        return Answer(found[0] if self.is_single else found)


def classification_call(body: ClassificationBody, model: TaskModel, shapes: ClientShapes) -> ClassificationCall:
    """Apply the rules of text-classification, which answers a list of lists also for one text.

    Raises ValidationFailed and TooManyRows.
    """
    parameters = body.parameters or ClassificationParameters()
    if parameters.top_k is not None and parameters.top_k < 1:
        raise ValidationFailed(
            f"`parameters.top_k` must be at least 1, found {parameters.top_k}", field="parameters.top_k"
        )
    inputs = body.inputs
    if isinstance(inputs, list):
        model.check_count(len(inputs), "inputs")
        texts = [_labelled(item, f"inputs[{index}]") for index, item in enumerate(inputs)]
    else:
        texts = [_labelled(inputs, "inputs")]
    check_texts(texts, model)
    source = LabelRows(model, texts, "longest" if parameters.truncation else "never", ADVICE)
    function = parameters.function_to_apply or default_function(model.facts)
    return ClassificationCall(source, function, parameters.top_k, is_single=False)


def predict_call(body: PredictBody, model: TaskModel, shapes: ClientShapes) -> ClassificationCall:
    """Apply the rules of /predict. Raises ValidationFailed and TooManyRows."""
    inputs = body.inputs
    if isinstance(inputs, str):
        texts, is_single = [LabelText(inputs, "inputs")], True
    elif all(isinstance(item, str) for item in inputs):
        texts, is_single = [_texts_of(inputs, "inputs")], True
    else:
        model.check_count(len(inputs), "inputs")
        texts, is_single = [_texts_of(item, f"inputs[{index}]") for index, item in enumerate(inputs)], False
    check_texts(texts, model)
    source = LabelRows(
        model, texts, "longest" if body.truncate else "never", "shorten the text, or send `truncate: true`"
    )
    function: Function = "none" if body.raw_scores else default_function(model.facts)
    return ClassificationCall(source, function, None, is_single)


def check_texts(texts: Sequence[LabelText], model: TaskModel) -> None:
    """Check the texts of rows before they are tokenised. Raises ValidationFailed."""
    for text in texts:
        model.check_text(text.text, text.path)
        if text.pair is not None:
            model.check_text(text.pair, text.path)


def _labelled(item: str | TextPair, path: str) -> LabelText:
    return LabelText(item, path) if isinstance(item, str) else LabelText(item.text, path, item.text_pair)


def _texts_of(item: object, path: str) -> LabelText:
    """Return the row of a list of one text or two."""
    parts = [item] if isinstance(item, str) else item
    assert isinstance(parts, list)
    if not 1 <= len(parts) <= 2:
        raise ValidationFailed(f"`{path}` must hold one text or two, found {len(parts)}", field=path)
    return LabelText(parts[0], path, parts[1] if len(parts) == 2 else None)
