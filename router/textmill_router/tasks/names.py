"""The names of the tasks without generation, and which tasks a call may ask of a model of one of them."""

import re

ROW_TASKS = (
    "feature-extraction",
    "sentence-similarity",
    "text-classification",
    "zero-shot-classification",
    "rerank",
    "token-classification",
    "fill-mask",
    "question-answering",
)
_TRANSLATION = re.compile(r"translation_\w+_to_\w+")
_ALIASES = {
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "sentence-embeddings": "feature-extraction",
    "text-ranking": "rerank",
    "sentence-ranking": "rerank",
}


def is_row_task(task: str | None) -> bool:
    """Whether a task is one of rows without generation."""
    return task in ROW_TASKS


def canonical_task(name: str) -> str:
    """Return the name of a task for an alias, else the name itself."""
    if _TRANSLATION.fullmatch(name):
        return "translation"
    return _ALIASES.get(name, name)
