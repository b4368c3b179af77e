"""What to do with a model folder that has no tokenizer.json, by the files and the class of its tokenizer."""

import json
from pathlib import Path

# Classes of transformers that only Python code runs, with the reason.
SLOW_CLASSES = {
    "M2M100Tokenizer": "its pieces and their ids stand in two files",
    "MarianTokenizer": "it has one vocabulary for two sets of pieces",
    "Speech2TextTokenizer": "its pieces and their ids stand in two files",
    "TapasTokenizer": "it lays out tables",
}
# Files of vocabularies from which transformers makes a tokenizer.json.
_VOCABULARIES = (
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
)


def tokenizer_advice(folder: Path) -> str:
    """Return why there is no tokenizer.json and what the user can do."""
    name = _class_of(folder)
    if name in SLOW_CLASSES:
        return (
            f"the tokenizer {name} has no such form, because {SLOW_CLASSES[name]}; this server reads tokenizer.json "
            "alone, so serve another checkpoint of the task"
        )
    found = next((files for files in _VOCABULARIES if all((folder / file).is_file() for file in files)), None)
    if found is None:
        return "save the model's fast tokenizer there"
    call = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    return (
        f"found {' and '.join(found)}, from which transformers makes one: "
        f'python -c "from transformers import AutoTokenizer; {call}"'
    )


def _class_of(folder: Path) -> str:
    """Return the name of the tokenizer's class as the files name it, without `Fast`; empty where none does."""
    for file, key in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "tokenizer_class")):
        try:
            name = json.loads((folder / file).read_bytes()).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(name, str):
            return name.removesuffix("Fast")
    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return ""
    return {"marian": "MarianTokenizer", "tapas": "TapasTokenizer"}.get(kind, "")
