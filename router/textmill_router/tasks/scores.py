"""From raw scores of labels to the scores of an answer."""

import math
from collections.abc import Sequence
from typing import Literal

from textmill_router.tasks.row_results import Numbers, RowResult
from textmill_router.tasks.task_facts import TaskFacts

Function = Literal["sigmoid", "softmax", "none"]


def softmax(logits: Sequence[float]) -> list[float]:
    """Return exp(x) / sum(exp(x)), shifted by the largest x so that nothing overflows."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-x)), whose power never overflows."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


def default_function(facts: TaskFacts) -> Function:
    """Return the function that transformers' pipeline applies to the scores of this model."""
    if facts.problem_type == "regression":
        return "none"
    if facts.problem_type == "multi_label_classification" or len(facts.labels) == 1:
        return "sigmoid"
    return "softmax"


def apply(function: Function, logits: Sequence[float]) -> list[float]:
    """Return the scores of the labels of one row."""
    if function == "softmax":
        return softmax(logits)
    return [sigmoid(logit) for logit in logits] if function == "sigmoid" else list(logits)


def best_first(labels: Sequence[str], scores: Sequence[float], top_k: int | None) -> list[dict[str, object]]:
    """Return the labels with their scores, the best first; labels of equal scores stay in their order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
    return [{"label": labels[index], "score": scores[index]} for index in order]


def logits_of(result: RowResult) -> list[float]:
    """Return the raw score of each label of a row."""
    assert isinstance(result, Numbers)
    return result.values.tolist()
