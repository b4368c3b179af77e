"""The files of a folder: what tokenizer_config.json changes, and what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from textmill_router.text.tokenizer_files import TokenizerError, read_tokenizer_files

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID, make_byte_tokenizer, write_byte_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model", merges=[(b"a", b"b"), (b"ab", b"c")])


def encode(folder: Path, text: str) -> list[int]:
    ids: list[int] = read_tokenizer_files(folder).library.encode(text).ids
    return ids


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": {"content": "abc", "__type": "AddedToken"}, "pad_token": "not in the vocabulary"},
        {"additional_special_tokens": ["nowhere", "abc"]},
        {"additional_special_tokens": [{"content": "abc"}]},
        {"added_tokens_decoder": {"259": {"content": "abc", "special": True}}},
    ],
)
def test_token_that_only_the_config_calls_special(folder: Path, config: dict[str, Any]) -> None:
    change_config(folder, **config)
    library = read_tokenizer_files(folder).library
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    assert "abc" in special
    assert library.get_vocab_size(with_added_tokens=True) == 260


def test_add_bos_token_of_the_config_wins(folder: Path) -> None:
    change_config(folder, add_bos_token=False, add_eos_token=True)
    assert encode(folder, "a") == [97, END_ID]
    change_config(folder, add_bos_token=True, add_eos_token=False)
    assert encode(folder, "a") == [BEGIN_ID, 97]


def test_truncation_and_padding_of_the_file_are_off(folder: Path) -> None:
    library = make_byte_tokenizer()
    library.enable_truncation(4)
    library.enable_padding(length=8)
    library.save(str(folder / "tokenizer.json"))
    assert encode(folder, "abcdef") == [BEGIN_ID, *b"abcdef"]


def test_digest_is_that_of_the_file(folder: Path) -> None:
    data = (folder / "tokenizer.json").read_bytes()
    assert read_tokenizer_files(folder).digest == hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "No such file"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", "[", "is not JSON"),
        ("tokenizer_config.json", "[]", "wanted an object"),
        ("tokenizer_config.json", '{"add_bos_token": true, "bos_token": "<none>"}', "does not hold"),
    ],
)
def test_unusable_folder_is_named(folder: Path, name: str, content: str | None, reason: str) -> None:
    path = folder / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(TokenizerError, match=reason):
        read_tokenizer_files(folder)


def test_folder_without_config_is_enough(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert encode(folder, "a") == [BEGIN_ID, 97]
