"""The files of a tokenizer: the tokens that they put at the ends of a prompt, and the files that are refused."""

import hashlib
import json
from pathlib import Path

import pytest
from textmill_router.text.tokenizer_files import TokenizerError, read_tokenizer_files
from tokenizers import processors
from transformers import AutoTokenizer

from tests.fakes.byte_tokenizer import BEGIN, BEGIN_ID, END, END_ID, make_byte_tokenizer, write_byte_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model", merges=[(b"a", b"b"), (b"ab", b"c")])


def encode(folder: Path, text: str) -> list[int]:
    ids: list[int] = read_tokenizer_files(folder).library.encode(text).ids
    return ids


EDGES = {
    "none": None,
    "begin": processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, BEGIN_ID)]),
    "both": processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, BEGIN_ID), (END, END_ID)]
    ),
    "bytes": processors.ByteLevel(trim_offsets=False),
}
CLASSES = [
    (None, None),
    (None, "llama"),
    (None, "gpt_neox"),
    ("PreTrainedTokenizerFast", "llama"),
    ("LlamaTokenizer", "llama"),
    ("LlamaTokenizerFast", "mistral"),
    ("GemmaTokenizer", "gemma"),
    ("CohereTokenizer", "cohere"),
    ("Qwen2Tokenizer", "qwen2"),
    ("GPT2Tokenizer", "gpt2"),
    ("GPTNeoXTokenizer", "gpt_neox"),
    ("GPTNeoXTokenizerFast", "olmo"),
    ("GPTNeoXTokenizer", None),
    ("CodeLlamaTokenizer", "llama"),
    ("NoSuchTokenizer", "llama"),
]
# Pairs of add_bos_token and add_eos_token; None where the config does not have the flag.
FLAGS = [(None, None), (True, None), (False, True), (True, False), (False, False)]


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize(("class_name", "model_type"), CLASSES)
def test_ends_of_a_prompt_are_those_of_transformers(
    tmp_path: Path, class_name: str | None, model_type: str | None, edges: str
) -> None:
    """tokenizer.json decides, or one of two classes of transformers, but no flag of tokenizer_config.json."""
    library = make_byte_tokenizer(add_begin=False)
    if EDGES[edges] is not None:
        library.post_processor = EDGES[edges]
    library.save(str(tmp_path / "tokenizer.json"))
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for begins, ends in FLAGS:
        config = {
            "bos_token": BEGIN,
            "eos_token": END,
            "unk_token": END,
            "tokenizer_class": class_name,
            "add_bos_token": begins,
            "add_eos_token": ends,
        }
        config = {name: value for name, value in config.items() if value is not None}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        expected = AutoTokenizer.from_pretrained(tmp_path)("a").input_ids
        found = encode(tmp_path, "a")
        assert (found[0] == BEGIN_ID, found[-1] == END_ID) == (expected[0] == BEGIN_ID, expected[-1] == END_ID)


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
