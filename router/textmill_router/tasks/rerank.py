"""rerank: how well each text answers a query, in the forms of text-embeddings-inference and of Cohere."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from textmill_router.errors import ValidationFailed, WrongTask
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.label_rows import LabelRows, LabelText
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.scores import logits_of, sigmoid
from textmill_router.tasks.text_classification import check_texts

TASK = "rerank"


class Document(msgspec.Struct, gc=False):
    """A document as an object."""

    text: str


class RerankBody(msgspec.Struct, gc=False):
    """The body of /rerank: `texts` in the form of text-embeddings-inference, or `documents` in that of Cohere."""

    query: str
    texts: list[str] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    documents: list[str | Document] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    model: str | None = None


@dataclass(slots=True)
class RerankCall:
    """A call with a row for each text. `is_cohere` tells the form of the answer."""

    source: LabelRows
    body: RerankBody
    is_cohere: bool
    task: str = TASK

    @property
    def num_rows(self) -> int:
        return len(self.source.texts)

    @property
    def num_characters(self) -> int:
        return len(self.body.query) + sum(len(text.pair or "") for text in self.source.texts)

    @property
    def notes(self) -> CallNotes:
        return self.source.notes

    async def rows(self) -> list[Row]:
        return await self.source.rows()

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        logits = [logits_of(result)[0] for result in results]
        scores = logits if self.body.raw_scores else [sigmoid(logit) for logit in logits]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: self.body.top_n]
        texts = [text.pair for text in self.source.texts]
        if not self.is_cohere:
            shown = self.body.return_text
            return Answer([{"index": i, "score": scores[i], **({"text": texts[i]} if shown else {})} for i in order])
        entries: list[dict[str, object]] = [
            {
                "index": i,
                "relevance_score": scores[i],
                **({"document": {"text": texts[i]}} if self.body.return_documents else {}),
            }
            for i in order
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        name = self.body.model or self.source.model.name
        return Answer({"object": "list", "results": entries, "model": name, "usage": usage})


def check_rerank(model: TaskModel) -> None:
    """Raise WrongTask for a classifier of several labels, whose scores order nothing."""
    if len(model.facts.labels) != 1:
        raise WrongTask(
            f"the model's task is {model.facts.task}, and {TASK} needs a model with one label; this model has "
            f"{len(model.facts.labels)}"
        )


def rerank_call(body: RerankBody, model: TaskModel, shapes: ClientShapes) -> RerankCall:
    """Apply the rules of rerank. Raises ValidationFailed, TooManyRows and WrongTask."""
    check_rerank(model)
    if (body.texts is None) == (body.documents is None):
        what = (
            "are the forms of different servers: send one of them"
            if body.texts is not None
            else "are missing: send one"
        )
        raise ValidationFailed(f"`texts` and `documents` {what}", field="texts")
    if body.top_n is not None and body.top_n < 1:
        raise ValidationFailed(f"`top_n` must be at least 1, found {body.top_n}", field="top_n")
    is_cohere = body.documents is not None
    name = "documents" if is_cohere else "texts"
    given = body.documents if body.documents is not None else body.texts
    assert given is not None
    model.check_count(len(given), name)
    model.check_text(body.query, "query")
    texts = [
        LabelText(body.query, f"{name}[{index}]", item if isinstance(item, str) else item.text)
        for index, item in enumerate(given)
    ]
    check_texts(texts, model)
    # Cohere cuts long documents; the servers of the other form refuse them unless the call says `truncate`.
    may_cut = is_cohere if body.truncate is None else body.truncate
    source = LabelRows(model, texts, "longest" if may_cut else "never", "shorten the text, or send `truncate: true`")
    return RerankCall(source, body, is_cohere)
