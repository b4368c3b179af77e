"""feature-extraction, and the routes of embedding servers that give vectors: /embed, /embed_all, /embed_sparse."""

from collections.abc import Sequence
from dataclasses import dataclass

from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.rows import Head, Row, RowResult, ScoredIds
from textmill_router.tasks.vectors import Inputs, VectorFields, VectorRows, check_options, main_head, read_inputs

TASK = "feature-extraction"


class FeatureBody(VectorFields, kw_only=True, gc=False):
    """The body of feature-extraction. The fields of the vectors may stand in `parameters` too."""

    inputs: Inputs
    parameters: VectorFields | None = None


class EmbedBody(VectorFields, kw_only=True, gc=False):
    """The body of /embed, /embed_all and /embed_sparse."""

    inputs: Inputs


@dataclass(slots=True)
class FeatureCall:
    """A call whose answer is a list of vectors, or with `is_single` one vector."""

    source: VectorRows
    is_single: bool
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
        if self.source.options.head is Head.SPARSE_VECTORS:
            return Answer([_sparse(result) for result in results])
        vectors = self.source.vectors(results)
        return Answer(vectors[0] if self.is_single else vectors)


def feature_call(body: FeatureBody, model: TaskModel, shapes: ClientShapes) -> FeatureCall:
    """Apply the rules of feature-extraction. Raises ValidationFailed, TooManyRows and WrongTask."""
    texts, is_single = read_inputs(body.inputs, model, "inputs")
    head = main_head(model)
    # Vectors of tokens are the model's own states, unless the call asks for another length.
    normalize = False if head is Head.TOKEN_VECTORS else None
    options = check_options([body.parameters, body], model, head=head, normalize=normalize)
    return FeatureCall(VectorRows(model, texts, options), is_single)


def embed_call(body: EmbedBody, model: TaskModel, shapes: ClientShapes) -> FeatureCall:
    """Apply the rules of /embed, whose answer is a list also for one text."""
    texts, _ = read_inputs(body.inputs, model, "inputs")
    options = check_options([body], model, head=Head.VECTORS, normalize=True)
    return FeatureCall(VectorRows(model, texts, options), is_single=False)


def embed_all_call(body: EmbedBody, model: TaskModel, shapes: ClientShapes) -> FeatureCall:
    """Apply the rules of /embed_all, which gives a vector of each token."""
    texts, _ = read_inputs(body.inputs, model, "inputs")
    options = check_options([body], model, head=Head.TOKEN_VECTORS, normalize=False)
    return FeatureCall(VectorRows(model, texts, options), is_single=False)


def embed_sparse_call(body: EmbedBody, model: TaskModel, shapes: ClientShapes) -> FeatureCall:
    """Apply the rules of /embed_sparse, which gives weights of vocabulary ids."""
    texts, _ = read_inputs(body.inputs, model, "inputs")
    options = check_options([body], model, head=Head.SPARSE_VECTORS, normalize=False)
    return FeatureCall(VectorRows(model, texts, options), is_single=False)


def _sparse(result: RowResult) -> list[dict[str, object]]:
    assert isinstance(result, ScoredIds)
    return [{"index": index, "value": value} for index, value in zip(result.ids, result.scores, strict=True)]
