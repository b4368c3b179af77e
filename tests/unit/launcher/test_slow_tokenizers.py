"""The vocabulary files from which a tokenizer.json can be made are known by their names."""

from pathlib import Path

import pytest
from textmill_launcher.slow_tokenizers import has_tokenizer, vocabulary_of


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["vocab.txt"], ("vocab.txt",)),
        (["vocab.json", "merges.txt"], ("vocab.json", "merges.txt")),
        (["vocab.json"], None),
        (["merges.txt"], None),
        (["spiece.model"], ("spiece.model",)),
        (["sentencepiece.bpe.model", "tokenizer_config.json"], ("sentencepiece.bpe.model",)),
        (["vocab.json", "source.spm", "target.spm"], ("vocab.json", "source.spm", "target.spm")),
        (["vocab.json", "sentencepiece.bpe.model"], ("vocab.json", "sentencepiece.bpe.model")),
        (["tokenizer.model"], ("tokenizer.model",)),
        (["tokenizer_config.json"], None),
    ],
)
def test_the_files_of_a_vocabulary_are_found(
    tmp_path: Path, names: list[str], expected: tuple[str, ...] | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert vocabulary_of(tmp_path) == expected
    assert not has_tokenizer(tmp_path)
