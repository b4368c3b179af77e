"""Facts of a task model that its files tell: labels, longest row, the masked token, token types."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.model_config import max_model_tokens
from textmill_shard.loader.model_files import read_json

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# A tokenizer without a limit says a number of 30 digits.
_NO_LIMIT = 1 << 31


def read_labels(config: Any, folder: Path) -> tuple[str, ...]:
    """Return the label of each id. Raises ModelFilesError where an id has none."""
    labels: dict[int, str] = config.id2label or {}
    num_labels = int(config.num_labels)
    missing = [number for number in range(num_labels) if number not in labels]
    if missing:
        raise ModelFilesError(f"{folder / 'config.json'} has {num_labels} labels, id2label lacks {missing[0]}")
    return tuple(str(labels[number]) for number in range(num_labels))


def read_problem_type(config: Any, folder: Path) -> str:
    """Return `problem_type` of config.json, empty where the file has none. Raises ModelFilesError for another word."""
    found = getattr(config, "problem_type", None) or ""
    if found and found not in PROBLEM_TYPES:
        raise ModelFilesError(
            f"{folder / 'config.json'} has {found!r} as problem_type, known are {', '.join(PROBLEM_TYPES)}"
        )
    return str(found)


def find_tokenizer(folder: Path) -> Any:
    """Return the tokenizer as transformers reads it. Raises ModelFilesError."""
    with as_model_error(lambda said: ModelFilesError(f"the tokenizer of {folder} cannot be read: {said}")):
        return AutoTokenizer.from_pretrained(folder)


def find_max_row_tokens(folder: Path, config: Any, model: nn.Module, tokenizer: Any) -> int:
    """Return the least of the limits of positions, tokenizer and `sentence_bert_config.json`; 0 = there is none."""
    limits = [_num_positions(config, model)]
    if isinstance(tokenizer.model_max_length, int):
        limits.append(tokenizer.model_max_length)
    path = folder / "sentence_bert_config.json"
    if path.is_file():
        given = read_json(path).get("max_seq_length")
        if given is not None and (not isinstance(given, int) or given < 1):
            raise ModelFilesError(f"{path} has {given!r} as max_seq_length, where a number of tokens is wanted")
        limits.append(given or 0)
    known = [limit for limit in limits if 0 < limit < _NO_LIMIT]
    return min(known, default=0)


def _num_positions(config: Any, model: nn.Module) -> int:
    """Return the positions of texts. A table with a padding row, as RoBERTa has one, begins behind that row."""
    limit = max_model_tokens(config)
    tables = [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.num_embeddings == limit
    ]
    paddings = [table.padding_idx for table in tables if table.padding_idx is not None]
    return limit - paddings[0] - 1 if paddings else limit


def find_num_token_types(config: Any, tokenizer: Any, *, reads_types: bool) -> int:
    """Return how many token types the model reads, 0 where the model reads none or the tokenizer makes none."""
    if not reads_types or "token_type_ids" not in tokenizer.model_input_names:
        return 0
    # XLNet has no table of types. It compares the types of two tokens, and its tokenizer gives the types 0 to 3.
    num_types = int(getattr(config, "type_vocab_size", 4) or 0)
    return num_types if num_types > 1 else 0
