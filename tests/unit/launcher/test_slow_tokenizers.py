"""A folder without tokenizer.json is refused with what its user can do."""

import json
import re
from pathlib import Path

import pytest
from textmill_launcher.slow_tokenizers import tokenizer_advice


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "name"),
    [
        ({}, {"tokenizer_class": "M2M100Tokenizer"}, "M2M100Tokenizer"),
        ({"model_type": "marian"}, None, "MarianTokenizer"),
        ({"model_type": "tapas"}, {}, "TapasTokenizer"),
        ({"tokenizer_class": "MarianTokenizer"}, {}, "MarianTokenizer"),
    ],
)
def test_a_tokenizer_without_a_fast_form_is_refused_by_name(
    tmp_path: Path, config: dict[str, str], tokenizer_config: dict[str, str] | None, name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if tokenizer_config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (tmp_path / "vocab.json").write_text("{}")
    advice = tokenizer_advice(tmp_path)
    assert name in advice
    assert "serve another checkpoint" in advice


def test_a_folder_without_any_vocabulary_is_told_what_is_wanted(tmp_path: Path) -> None:
    assert tokenizer_advice(tmp_path) == "save the model's fast tokenizer there"


def test_the_command_of_the_advice_makes_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "dog"]))
    advice = tokenizer_advice(tmp_path)
    assert "vocab.txt" in advice
    command = re.search(r'python -c "(.*)"$', advice)
    assert command is not None
    exec(command[1], {})  # a process of its own would import transformers for seconds
    assert "fox" in (tmp_path / "tokenizer.json").read_text()
