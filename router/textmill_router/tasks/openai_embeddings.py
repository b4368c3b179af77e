"""/v1/embeddings: vectors in OpenAI's form."""

from collections.abc import Sequence

import msgspec

from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.vector_call import VectorCall
from textmill_router.tasks.vectors import Encodings, Inputs, VectorFields, VectorRows, check_options, read_inputs
from textmill_router.tasks.wishes import Head

TASK = "feature-extraction"


class EmbeddingsBody(msgspec.Struct, gc=False):
    """The body of /v1/embeddings. The answer names the model of the body."""

    input: Inputs
    model: str | None = None
    encoding_format: Encodings | None = None
    dimensions: int | None = None
    user: str | None = None
    prompt_name: str | None = None


def embeddings_call(body: EmbeddingsBody, model: TaskModel, shapes: ClientShapes) -> VectorCall:
    """Apply the rules of /v1/embeddings. Raises ValidationFailed, TooManyRows and WrongTask."""
    texts, _ = read_inputs(body.input, model, "input")
    fields = VectorFields(
        dimensions=body.dimensions, encoding_format=body.encoding_format, prompt_name=body.prompt_name
    )
    options = check_options(None, model, outer=fields, head=Head.VECTORS)
    source = VectorRows(model, texts, options)

    def shape(results: Sequence[RowResult], num_tokens: int) -> object:
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(source.vectors(results))
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": body.model or model.name, "usage": usage}

    return VectorCall(source, TASK, shape)
