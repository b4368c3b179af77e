"""What the files of Marian and M2M100 may not say is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.tokenizer_convert import convert_tokenizer
from tokenizers import Tokenizer

from tests.fakes.vocabulary_files import M2M100_CODES, write_family


def _change(path: Path, **changes: Any) -> None:
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**said, **changes}))


def test_the_languages_of_m2m100_are_special_tokens_without_a_list_of_them(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "m2m_100")
    (folder / "tokenizer_config.json").unlink()
    made = Tokenizer.from_file(str(convert_tokenizer(folder, tmp_path / "cache") / "tokenizer.json"))
    first = len(json.loads((folder / "vocab.json").read_text()))
    assert [made.token_to_id(f"__{code}__") for code in M2M100_CODES] == list(range(first, first + 100))
    assert made.decode([first + 18, 5], skip_special_tokens=True) == made.decode([5])


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "marian")
    (folder / "target_vocab.json").write_bytes((folder / "vocab.json").read_bytes())
    _change(folder / "tokenizer_config.json", separate_vocabs=True, tokenizer_class="MarianTokenizer")
    with pytest.raises(ModelFilesError, match="two vocabularies"):
        convert_tokenizer(folder, tmp_path / "cache")


def test_an_added_token_that_takes_spaces_is_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "marian")
    last = len(json.loads((folder / "vocab.json").read_text()))
    token = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    _change(folder / "tokenizer_config.json", added_tokens_decoder={str(last): {**token, "special": True}})
    with pytest.raises(ModelFilesError, match="'<mask>' that takes spaces away"):
        convert_tokenizer(folder, tmp_path / "cache")


@pytest.mark.parametrize("family", ["marian", "m2m_100"])
def test_one_id_for_two_tokens_is_refused(tmp_path: Path, family: str) -> None:
    folder = write_family(tmp_path / "model", family)
    _change(folder / "vocab.json", twice=7)
    with pytest.raises(ModelFilesError, match=r"vocab\.json"):
        convert_tokenizer(folder, tmp_path / "cache")


def test_a_piece_that_the_class_reads_otherwise_is_refused(tmp_path: Path) -> None:
    """SentencePiece writes its own text for a piece that the vocabulary has under the name of a control piece."""
    folder = write_family(tmp_path / "model", "marian")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    _change(folder / "vocab.json", **{"<s>": len(vocabulary)})
    with pytest.raises(ModelFilesError, match="have other texts by MarianTokenizer"):
        convert_tokenizer(folder, tmp_path / "cache")


@pytest.mark.parametrize("name", ["source.spm", "vocab.json"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_family(tmp_path / "model", "marian")
    (folder / name).write_bytes(b"{")
    with pytest.raises(ModelFilesError, match="can be made"):
        convert_tokenizer(folder, tmp_path / "cache")
