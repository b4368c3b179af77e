"""/v1/embeddings: vectors in OpenAI's form."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.rows import Head, Row, RowResult
from textmill_router.tasks.vectors import Encodings, Inputs, VectorFields, VectorRows, check_options, read_inputs

TASK = "feature-extraction"


class EmbeddingsBody(msgspec.Struct, gc=False):
    """The body of /v1/embeddings. The answer names the model of the body."""

    input: Inputs
    model: str | None = None
    encoding_format: Encodings | None = None
    dimensions: int | None = None
    user: str | None = None
    prompt_name: str | None = None


@dataclass(slots=True)
class EmbeddingsCall:
    """A call whose answer is OpenAI's list."""

    source: VectorRows
    model_name: str
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
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(self.source.vectors(results))
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return Answer({"object": "list", "data": data, "model": self.model_name, "usage": usage})


def embeddings_call(body: EmbeddingsBody, model: TaskModel, shapes: ClientShapes) -> EmbeddingsCall:
    """Apply the rules of /v1/embeddings. Raises ValidationFailed, TooManyRows and WrongTask."""
    texts, _ = read_inputs(body.input, model, "input")
    fields = VectorFields(
        dimensions=body.dimensions, encoding_format=body.encoding_format, prompt_name=body.prompt_name
    )
    options = check_options([fields], model, head=Head.VECTORS)
    return EmbeddingsCall(VectorRows(model, texts, options), body.model or model.name)
