"""feature-extraction, and the routes of embedding servers that give vectors: /embed, /embed_all, /embed_sparse."""

from collections.abc import Sequence

from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, ScoredIds
from textmill_router.tasks.vector_call import VectorCall
from textmill_router.tasks.vectors import Inputs, VectorFields, VectorRows, check_options, main_head, read_inputs
from textmill_router.tasks.wishes import Head

TASK = "feature-extraction"


class FeatureBody(VectorFields, kw_only=True, gc=False):
    """The body of feature-extraction. The fields of the vectors may stand in `parameters` too."""

    inputs: Inputs
    parameters: VectorFields | None = None


class EmbedBody(VectorFields, kw_only=True, gc=False):
    """The body of /embed, /embed_all and /embed_sparse."""

    inputs: Inputs


def feature_call(body: FeatureBody, model: TaskModel, shapes: ClientShapes) -> VectorCall:
    """Apply the rules of feature-extraction. Raises ValidationFailed, TooManyRows and WrongTask."""
    texts, is_single = read_inputs(body.inputs, model, "inputs")
    head = main_head(model)
    # Vectors of tokens are the model's own states, unless the call asks for another length.
    normalize = False if head is Head.TOKEN_VECTORS else None
    options = check_options(body.parameters, model, outer=body, head=head, normalize=normalize)
    return _vectors(VectorRows(model, texts, options), is_single=is_single)


def embed_call(body: EmbedBody, model: TaskModel, shapes: ClientShapes) -> VectorCall:
    """Apply the rules of /embed, whose answer is a list also for one text."""
    texts, _ = read_inputs(body.inputs, model, "inputs")
    options = check_options(None, model, outer=body, head=Head.VECTORS, normalize=True)
    return _vectors(VectorRows(model, texts, options), is_single=False)


def embed_all_call(body: EmbedBody, model: TaskModel, shapes: ClientShapes) -> VectorCall:
    """Apply the rules of /embed_all, which gives a vector of each token."""
    texts, _ = read_inputs(body.inputs, model, "inputs")
    options = check_options(None, model, outer=body, head=Head.TOKEN_VECTORS, normalize=False)
    return _vectors(VectorRows(model, texts, options), is_single=False)


def embed_sparse_call(body: EmbedBody, model: TaskModel, shapes: ClientShapes) -> VectorCall:
    """Apply the rules of /embed_sparse, which gives weights of vocabulary ids."""
    texts, _ = read_inputs(body.inputs, model, "inputs")
    options = check_options(None, model, outer=body, head=Head.SPARSE_VECTORS, normalize=False)
    source = VectorRows(model, texts, options)
    return VectorCall(source, TASK, lambda results, _: [_sparse(result) for result in results])


def _vectors(source: VectorRows, *, is_single: bool) -> VectorCall:
    """Return a call whose answer is a list of vectors, or with `is_single` one vector."""

    def shape(results: Sequence[RowResult], num_tokens: int) -> object:
        vectors = source.vectors(results)
        return vectors[0] if is_single else vectors

    return VectorCall(source, TASK, shape)


def _sparse(result: RowResult) -> list[dict[str, object]]:
    assert isinstance(result, ScoredIds)
    return [{"index": index, "value": value} for index, value in zip(result.ids, result.scores, strict=True)]
