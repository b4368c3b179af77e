"""Which classes of tasks without generation are compared with transformers, and the difference of each.

Of each model type and class a tiny random model computes rows of uneven lengths at once. Each row is compared with
transformers' own class, which computes the row alone in fp32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from textmill_shard.tasks.rows import HeadName, MaskParams, Row, RowFailure, SpanParams, TokenLabelParams
from textmill_shard.tasks.task_loader import TaskOptions, load_task
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.fakes.tiny_tasks import TASK_ARCHITECTURES, alone, make_task_model, random_rows

LENGTHS = (7, 30, 2, 12, 12, 5, 41)
SPAN_LENGTHS = (8, 30, 12)
BOUND = 1e-5


@dataclass(frozen=True, slots=True)
class TaskClass:
    """The class of a task, what of its answer is compared, and the model types that have no such class."""

    auto_class: Any
    compared: str
    head: HeadName
    without: frozenset[str] = frozenset()


CLASSES: Mapping[str, TaskClass] = {
    "feature-extraction": TaskClass(AutoModel, "the vector of each token", HeadName.TOKEN_VECTORS, frozenset({"t5"})),
    "text-classification": TaskClass(
        AutoModelForSequenceClassification,
        "the score of each label",
        HeadName.LABELS,
        frozenset({"t5", "qwen3", "llama"}),
    ),
    "token-classification": TaskClass(
        AutoModelForTokenClassification,
        "the probability of each label of each token",
        HeadName.TOKEN_LABELS,
        frozenset({"t5", "bart"}),
    ),
    "fill-mask": TaskClass(
        AutoModelForMaskedLM,
        "ids and probabilities of the best tokens",
        HeadName.MASKS,
        frozenset({"t5", "qwen3", "llama", "xlnet"}),
    ),
    "question-answering": TaskClass(
        AutoModelForQuestionAnswering,
        "places and scores of the best spans",
        HeadName.SPANS,
        frozenset({"t5", "nomic_bert", "eurobert", "xlnet"}),
    ),
}
CASES = tuple(
    (task, model_type)
    for task, one in CLASSES.items()
    for model_type in TASK_ARCHITECTURES
    if model_type not in one.without
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The layout in which the shard runs the model, and the largest difference of a number."""

    layout: str
    difference: float


def compare(folder: Path, task: str, model_type: str) -> Comparison:
    """Make a model of the type and compare its rows. Fails where an id or a place differs."""
    one = CLASSES[task]
    labels = {"num_labels": 3} if one.head in (HeadName.LABELS, HeadName.TOKEN_LABELS) else {}
    model = make_task_model(folder, model_type, one.auto_class, **labels)
    loaded = load_task(TaskOptions(model_dir=folder, task=task), lambda phase, share: None)
    rows = [_with_params(row, one.head) for row in random_rows(SPAN_LENGTHS if one.head is HeadName.SPANS else LENGTHS)]
    found = loaded.runner.run(one.head, rows)
    assert not [answer for answer in found if isinstance(answer, RowFailure)], (task, model_type)
    differences = [
        _difference(one.head, alone(model, row), row, answer) for row, answer in zip(rows, found, strict=True)
    ]
    return Comparison(loaded.runner.forward.layout.value, max(differences))


def _with_params(row: Row, head: HeadName) -> Row:
    if head is HeadName.TOKEN_LABELS:
        return Row(row.token_ids, None, TokenLabelParams(np.ones(row.num_tokens, dtype=bool)))
    if head is HeadName.MASKS:
        places = np.array([0, row.num_tokens - 1])
        return Row(row.token_ids, None, MaskParams(places, top_k=4, target_ids=np.zeros(0, np.int64)))
    if head is HeadName.SPANS:
        roles = np.full(row.num_tokens, 2, np.uint8)
        roles[:4] = [1, 0, 0, 0]
        return Row(row.token_ids, None, SpanParams(roles, max_span_tokens=3, max_spans=4))
    return row


def _difference(head: HeadName, output: Any, row: Row, found: Any) -> float:
    """Return the largest difference between the answer of the shard and the output of transformers."""
    if head is HeadName.TOKEN_VECTORS:
        return _largest(found, output.last_hidden_state[0])
    if head is HeadName.LABELS:
        return _largest(found, output.logits[0])
    if head is HeadName.TOKEN_LABELS:
        return _largest(found, output.logits[0].softmax(dim=1))
    if head is HeadName.MASKS:
        assert isinstance(row.params, MaskParams)
        differences = []
        for position, filling in zip(row.params.positions, found, strict=True):
            values, ids = output.logits[0][position].softmax(dim=0).topk(4)
            assert filling.ids.tolist() == ids.tolist()
            differences.append(_largest(filling.probabilities, values))
        return max(differences)
    assert isinstance(row.params, SpanParams)
    hidden = torch.tensor(row.params.roles_n == 0)
    start_p, end_p = (
        scores[0].masked_fill(hidden, -10000.0).softmax(dim=0).tolist()
        for scores in (output.start_logits, output.end_logits)
    )
    spans = [(start, end) for start in range(4, row.num_tokens) for end in range(start, min(start + 3, row.num_tokens))]
    scored = sorted(((start_p[start] * end_p[end], start, end) for start, end in spans), reverse=True)[:4]
    places = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    assert places == [(start, end) for _, start, end in scored]
    return _largest(found.scores, torch.tensor([score for score, _, _ in scored]))


def _largest(found: Any, expected: torch.Tensor) -> float:
    return float(np.abs(np.asarray(found) - expected.numpy()).max())
