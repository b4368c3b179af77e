"""Tokens beside a vocabulary keep the ids that the files list, or the start ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.tokenizer_convert import convert_tokenizer
from tokenizers import Tokenizer

from tests.fakes.vocabulary_files import write_family

TOKEN = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}


def list_tokens(folder: Path, tokens: dict[int, str], **more: Any) -> None:
    entries = {str(number): {"content": text, **TOKEN} for number, text in tokens.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries, **more}))


def test_a_listed_token_keeps_its_id(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "bert")
    size = len(set((folder / "vocab.txt").read_text().split("\n")))
    list_tokens(folder, {1: "[UNK]", size: "<one>", size + 1: "<two>"})
    made = Tokenizer.from_file(str(convert_tokenizer(folder, tmp_path / "cache") / "tokenizer.json"))
    assert [made.token_to_id(text) for text in ("<one>", "<two>")] == [size, size + 1]
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"<two>": size, "<one>": size + 1}))
    made = Tokenizer.from_file(str(convert_tokenizer(folder, tmp_path / "cache") / "tokenizer.json"))
    assert [made.token_to_id(text) for text in ("<one>", "<two>")] == [size + 1, size]


def test_a_listed_token_with_another_id_ends_the_start(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "bert")
    list_tokens(folder, {5000: "<far>"})
    with pytest.raises(ModelFilesError, match=r"lists the token '<far>' with the id 5000, and BertTokenizer .* gives"):
        convert_tokenizer(folder, tmp_path / "cache")


def test_the_languages_that_nllb_lists_keep_their_ids(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "nllb")
    first = 321
    tokens = {
        0: "<s>",
        1: "<pad>",
        2: "</s>",
        3: "<unk>",
        first: "fra_Latn",
        first + 1: "eng_Latn",
        first + 2: "<mask>",
    }
    list_tokens(folder, tokens, additional_special_tokens=["fra_Latn", "eng_Latn"], tokenizer_class="NllbTokenizer")
    made = Tokenizer.from_file(str(convert_tokenizer(folder, tmp_path / "cache") / "tokenizer.json"))
    assert {number: made.id_to_token(number) for number in tokens} == tokens
    assert made.encode("").ids == [first + 1, 2]


def test_a_token_around_texts_that_the_vocabulary_lacks_ends_the_start(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "nllb")
    list_tokens(
        folder, {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}, tokenizer_class="NllbTokenizer", src_lang="xxx_Xxxx"
    )
    with pytest.raises(ModelFilesError, match="puts a token around texts"):
        convert_tokenizer(folder, tmp_path / "cache")
