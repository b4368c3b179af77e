"""Finds the vocabulary files from which a tokenizer.json is made for a model folder that has none."""

from pathlib import Path

TOKENIZER_FILE = "tokenizer.json"
# Files of vocabularies from which the shard's package makes a tokenizer.json.
_VOCABULARIES = (
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("vocab.json", "source.spm", "target.spm"),
    ("vocab.json", "sentencepiece.bpe.model"),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
    ("spm.model",),
)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a tokenizer.json."""
    return (folder / TOKENIZER_FILE).is_file()


def vocabulary_of(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the files from which a tokenizer.json can be made; None where the folder has none."""
    return next((files for files in _VOCABULARIES if all((folder / file).is_file() for file in files)), None)
