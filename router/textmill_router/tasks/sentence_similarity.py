"""sentence-similarity: the cosine between one sentence and others."""

import math
from collections.abc import Sequence
from operator import mul

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import Numbers, RowResult
from textmill_router.tasks.vector_call import VectorCall
from textmill_router.tasks.vectors import Text, VectorFields, VectorRows, check_options
from textmill_router.tasks.wishes import Head

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


def similarity_call(body: SimilarityBody, model: TaskModel, shapes: ClientShapes) -> VectorCall:
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
    options = check_options(body.parameters, model, head=Head.VECTORS, normalize=True)
    return VectorCall(VectorRows(model, texts, options), TASK, lambda results, _: _cosines(results))


def _cosines(results: Sequence[RowResult]) -> list[float]:
    """Return the cosine between the first row and each other row."""
    first, *others = [_unit(result) for result in results]
    return [sum(map(mul, first, other)) for other in others]


def _unit(result: RowResult) -> list[float]:
    assert isinstance(result, Numbers)
    numbers = result.values.tolist()
    length = math.hypot(*numbers) or 1.0
    return [number / length for number in numbers]
