"""zero-shot-classification: a model of entailment scores labels that the call brings."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from textmill_router.errors import WrongTask
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.candidate_labels import checked_labels, checked_template
from textmill_router.tasks.label_rows import LabelRows, LabelText
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.scores import logits_of, softmax
from textmill_router.tasks.task_facts import TaskFacts

TASK = "zero-shot-classification"
DEFAULT_TEMPLATE = "This example is {}."


class OldInputs(msgspec.Struct, gc=False):
    """The inputs of old clients: the labels beside the text."""

    text: str
    candidateLabels: list[str] | str | None = None  # the name that these clients send


class ZeroShotParameters(msgspec.Struct, gc=False):
    """The parameters of zero-shot-classification. The labels may be one string with commas."""

    candidate_labels: list[str] | str | None = None
    candidateLabels: list[str] | str | None = None  # the name that old clients send
    multi_label: bool | None = None
    hypothesis_template: str | None = None


class ZeroShotBody(msgspec.Struct, gc=False):
    """The body of zero-shot-classification."""

    inputs: str | OldInputs | list[str]
    parameters: ZeroShotParameters | None = None


@dataclass(frozen=True, slots=True)
class EntailmentIds:
    """The ids of the labels for entailment and contradiction."""

    entailment: int
    contradiction: int


@dataclass(slots=True)
class ZeroShotCall:
    """A call with a row for each text and each label, text after text."""

    source: LabelRows
    texts: Sequence[str]
    labels: Sequence[str]
    ids: EntailmentIds
    multi_label: bool
    is_single: bool
    as_list: bool
    task: str = TASK

    @property
    def num_rows(self) -> int:
        return len(self.source.texts)

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.texts))

    @property
    def notes(self) -> CallNotes:
        return self.source.notes

    async def rows(self) -> list[Row]:
        return await self.source.rows()

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        count = len(self.labels)
        found = [
            self._answer_of(text, results[start : start + count])
            for text, start in zip(self.texts, range(0, len(results), count), strict=True)
        ]
        return Answer(found[0] if self.is_single else found, varies_by_client=True)

    def _answer_of(self, text: str, results: Sequence[RowResult]) -> object:
        logits = [logits_of(result) for result in results]
        entailment, contradiction = self.ids.entailment, self.ids.contradiction
        if self.multi_label or len(self.labels) == 1:
            scores = [softmax([row[contradiction], row[entailment]])[1] for row in logits]
        else:
            scores = softmax([row[entailment] for row in logits])
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        if self.as_list:
            return [{"label": self.labels[index], "score": scores[index]} for index in order]
        return {
            "sequence": text,
            "labels": [self.labels[index] for index in order],
            "scores": [scores[index] for index in order],
        }


def entailment_ids(facts: TaskFacts) -> EntailmentIds | None:
    """Return the ids as transformers' pipeline finds them, or None for a model without a label `entail...`."""
    for index, label in enumerate(facts.labels):
        if label.lower().startswith("entail"):
            return EntailmentIds(index, len(facts.labels) - 1 if index == 0 else 0)
    return None


def zero_shot_call(body: ZeroShotBody, model: TaskModel, shapes: ClientShapes) -> ZeroShotCall:
    """Apply the rules of zero-shot-classification. Raises ValidationFailed, TooManyRows and WrongTask."""
    ids = entailment_ids(model.facts)
    if ids is None or len(model.facts.labels) < 2:
        shown = ", ".join(model.facts.labels[:10])
        raise WrongTask(
            f"the model's task is {model.facts.task}, and {TASK} needs a label that begins with `entail`; "
            f"the model's labels are {shown}"
        )
    parameters = body.parameters or ZeroShotParameters()
    old = body.inputs if isinstance(body.inputs, OldInputs) else None
    given = parameters.candidate_labels if parameters.candidate_labels is not None else parameters.candidateLabels
    if given is None and old is not None:
        given = old.candidateLabels
    labels = checked_labels(given)
    template = checked_template(parameters.hypothesis_template, DEFAULT_TEMPLATE)
    inputs = old.text if old is not None else body.inputs
    texts = inputs if isinstance(inputs, list) else [str(inputs)]
    paths = [f"inputs[{index}]" for index in range(len(texts))] if isinstance(inputs, list) else ["inputs"]
    model.check_count(len(texts) * len(labels), "inputs")
    for text, path in zip(texts, paths, strict=True):
        model.check_text(text, path)
    rows = [
        LabelText(text, path, template.replace("{}", label))
        for text, path in zip(texts, paths, strict=True)
        for label in labels
    ]
    source = LabelRows(model, rows, "first", "the label leaves no room for the text; shorten the label")
    return ZeroShotCall(
        source,
        texts,
        labels,
        ids,
        bool(parameters.multi_label),
        is_single=not isinstance(inputs, list),
        as_list=shapes.zero_shot_is_list,
    )
