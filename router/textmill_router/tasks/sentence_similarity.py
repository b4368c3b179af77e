"""sentence-similarity: the cosine between one sentence and others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.rows import Head, Numbers, Row, RowResult
from textmill_router.tasks.vectors import Text, VectorFields, VectorRows, check_options

TASK = "sentence-similarity"


class SimilarityInputs(msgspec.Struct, gc=False):
    """One sentence, and the sentences that are compared with it. `sourceSentence` is read too."""

    sentences: list[str]
    source_sentence: str | None = None
    sourceSentence: str | None = None  # the name that some clients send


class SimilarityBody(msgspec.Struct, gc=False):
    """The body of sentence-similarity and of /similarity."""

    inputs: SimilarityInputs
    parameters: VectorFields | None = None


@dataclass(slots=True)
class SimilarityCall:
    """A call whose first row is the sentence with which the other rows are compared."""

    source: VectorRows
    task: str = TASK

    @property
    def num_rows(self) -> int:
        return len(self.source.texts)

    @property
    def num_characters(self) -> int:
        return self.source.num_characters

    @property
    def notes(self) -> CallNotes:
        return self.source.notes

    async def rows(self) -> list[Row]:
        return await self.source.rows()

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        first, *others = [_unit(result) for result in results]
        return Answer([sum(map(mul, first, other)) for other in others])


def similarity_call(body: SimilarityBody, model: TaskModel, shapes: ClientShapes) -> SimilarityCall:
    """Apply the rules of sentence-similarity. Raises ValidationFailed, TooManyRows and WrongTask."""
    inputs = body.inputs
    sentence = inputs.source_sentence if inputs.source_sentence is not None else inputs.sourceSentence
    if sentence is None:
        path = "inputs.source_sentence"
        raise ValidationFailed(f"`{path}` is missing; send the sentence to compare with", field=path)
    model.check_count(len(inputs.sentences), "inputs.sentences")
    model.check_count(len(inputs.sentences) + 1, "inputs")
    texts = [Text(sentence, "inputs.source_sentence")]
    texts += [Text(text, f"inputs.sentences[{index}]") for index, text in enumerate(inputs.sentences)]
    for text in texts:
        assert isinstance(text.content, str)
        model.check_text(text.content, text.path)
    options = check_options([body.parameters], model, head=Head.VECTORS, normalize=True)
    return SimilarityCall(VectorRows(model, texts, options))


def _unit(result: RowResult) -> list[float]:
    assert isinstance(result, Numbers)
    numbers = result.values.tolist()
    length = math.hypot(*numbers) or 1.0
    return [number / length for number in numbers]
