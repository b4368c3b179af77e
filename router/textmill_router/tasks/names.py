"""The names of the tasks without generation, and which tasks a call may ask of a model of one of them."""

import re

TEXT_TASKS = (
    "feature-extraction",
    "sentence-similarity",
    "text-classification",
    "zero-shot-classification",
    "rerank",
    "token-classification",
    "fill-mask",
    "question-answering",
)
FILE_TASKS = (  # rows are images or audio
    "image-classification",
    "object-detection",
    "image-segmentation",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
    "depth-estimation",
    "image-to-text",
    "visual-question-answering",
    "document-question-answering",
    "audio-classification",
    "automatic-speech-recognition",
)
TABLE_TASK = "table-question-answering"  # rows are tables, which the shard lays out
STRING_TASKS = ("text-to-audio",)  # rows are strings, which the tokenizer of the shard reads
ROW_TASKS = (*TEXT_TASKS, *FILE_TASKS, TABLE_TASK, *STRING_TASKS)
_TRANSLATION = re.compile(r"translation_(\w+?)_to_(\w+)")
_ALIASES = {
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "sentence-embeddings": "feature-extraction",
    "image-captioning": "image-to-text",
    "text-retrieval": "sentence-similarity",
    "text-ranking": "rerank",
    "sentence-ranking": "rerank",
    "text-to-speech": "text-to-audio",
}


def is_row_task(task: str | None) -> bool:
    """Whether a task is one of rows without generation."""
    return task in ROW_TASKS


def is_file_task(task: str | None) -> bool:
    """Whether the rows of a task are images or audio."""
    return task in FILE_TASKS


def is_text_task(task: str | None) -> bool:
    """Whether the rows of a task are texts, which the router tokenises."""
    return task in TEXT_TASKS


def languages_of(name: str) -> tuple[str, str] | None:
    """Return the languages that a task's name has: `translation_en_to_de`. None for other names."""
    found = _TRANSLATION.fullmatch(name)
    return None if found is None else (found[1], found[2])


def canonical_task(name: str) -> str:
    """Return the name of a task for an alias, else the name itself."""
    if _TRANSLATION.fullmatch(name):
        return "translation"
    return _ALIASES.get(name, name)
