"""Tokenizers of GGUF files: token i of the file is id i, and what the file marks stays whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_cache import convert_gguf
from textmill_shard.loader.gguf_tokenizer import write_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.fakes.byte_tokenizer import alphabet
from tests.fakes.gguf_files import make_model, write_gguf

LETTERS = alphabet()
MARKS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<think>", "<0xZZ>"]
TYPES = [3, 3, 3, 4, 5]


def write(tmp_path: Path, tokens: list[str], types: list[int], **keys: Any) -> Path:
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": ["a b"]}
    fields |= {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    fields |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    model = make_model("llama", vocab_size=len(tokens), bos_token_id=None, eos_token_id=None)
    write_gguf(tmp_path / "model.gguf", model, "llama", tokenizer=fields)
    return tmp_path / "model.gguf"


def read(gguf_file: Path, folder: Path) -> tokenizers.Tokenizer:
    folder.mkdir(exist_ok=True)
    write_tokenizer(gguf_file, folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_special_tokens_in_any_letters_keep_their_ids(tmp_path: Path) -> None:
    """Of the R1 distills: their special tokens hold letters that no byte is spelt by."""
    tokens = [*MARKS[:3], *LETTERS, *MARKS[3:], "ab"]
    types = [*TYPES[:3], *[1] * 256, *TYPES[3:], 1]
    file = write(tmp_path, tokens, types, pre="deepseek-r1-qwen", bos_token_id=0, eos_token_id=1, add_bos_token=True)
    folder = convert_gguf(file, tmp_path / "cache", "float32")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert library.get_vocab_size(with_added_tokens=True) == len(tokens)
    assert [library.id_to_token(token_id) for token_id in range(len(tokens))] == tokens
    text = "<｜begin▁of▁sentence｜><｜User｜>Hi ab<think>é<｜end▁of▁sentence｜>"
    spelt = [tokens.index(letter) for letter in ("H", "i", "Ġ")]
    e = [tokens.index(letter) for letter in ("Ã", "©")]
    expected = [0, 2, *spelt, tokens.index("ab"), tokens.index("<think>"), *e, 1]
    assert library.encode(text, add_special_tokens=False).ids == expected
    assert library.encode(text).ids == [0, *expected]
    assert library.decode(expected) == "Hi ab<think>é"
    special = {token_id for token_id, token in library.get_added_tokens_decoder().items() if token.special}
    assert special == {0, 1, 2}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == (tokens[0], tokens[1])
    assert (config["add_bos_token"], config["add_eos_token"]) == (True, False)


def test_ids_are_those_of_a_tokenizer_built_by_hand(tmp_path: Path) -> None:
    tokens = [*LETTERS, "ab", "abc", "<|end|>"]
    file = write(tmp_path, tokens, [*[1] * 258, 3], pre="gpt-2", merges=["a b", "ab c"])
    library = read(file, tmp_path / "out")
    by_hand = tokenizers.Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[("a", "b"), ("ab", "c")])
    )
    by_hand.pre_tokenizer, by_hand.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    by_hand.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    for text in ("abcab abc<|end|>é\n", "it's 12 ab  c"):
        assert library.encode(text).ids == by_hand.encode(text).ids


def test_words_that_are_tokens_stay_whole_where_the_models_do_so(tmp_path: Path) -> None:
    tokens = [*LETTERS, "ab", "xyz"]  # no merge makes `xyz`
    types = [1] * len(tokens)
    assert read(write(tmp_path, tokens, types, pre="llama-bpe"), tmp_path / "one").encode("xyz").ids == [257]
    assert len(read(write(tmp_path, tokens, types, pre="qwen2"), tmp_path / "two").encode("xyz").ids) == 3


def test_characters_are_composed_where_the_models_do_so(tmp_path: Path) -> None:
    """transformers' Qwen2Tokenizer composes characters (NFC), and Llama's does not."""
    tokens, types = [*LETTERS, "ab"], [1] * 257
    qwen = read(write(tmp_path, tokens, types, pre="qwen2"), tmp_path / "one")
    assert qwen.encode("e\u0301").ids == qwen.encode("\u00e9").ids
    assert len(read(write(tmp_path, tokens, types, pre="llama-bpe"), tmp_path / "two").encode("e\u0301").ids) == 3


@pytest.mark.parametrize(
    ("pre", "keys", "around"),
    [
        ("llama-bpe", {}, ([0], [])),
        ("llama-bpe", {"add_bos_token": False}, ([], [])),
        ("gpt-2", {}, ([], [])),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, ([0], [1])),
        ("gpt-2", {"add_bos_token": True, "bos_token_id": None}, ([], [])),
    ],
)
def test_begin_and_end_are_added_as_the_file_says(
    tmp_path: Path, pre: str, keys: dict[str, Any], around: tuple[list[int], list[int]]
) -> None:
    tokens = ["<s>", "</s>", *LETTERS, "ab"]
    keys = {"bos_token_id": 0, "eos_token_id": 1, **keys}
    library = read(write(tmp_path, tokens, [3, 3, *[1] * 257], pre=pre, **keys), tmp_path / "out")
    assert library.encode("ab").ids == [*around[0], 258, *around[1]]


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma", "gemma2"])
def test_pieces_of_sentencepiece_keep_their_ids(tmp_path: Path, architecture: str) -> None:
    words = ["▁", "a", "b", "▁a", "ab", "▁ab", "▁▁", "c"]
    if architecture.startswith("gemma"):
        words[words.index("▁▁")] = "  "
    # Gemma's class of transformers has these names of its own.
    first = (
        ["<unk>", "<s>", "</s>"]
        if not architecture.startswith("gemma")
        else ["<unk>", "<bos>", "<eos>", "<pad>", "<mask>"]
    )
    tokens = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *words, "<|user|>", "<tag>"]
    types = [2, *[3] * (len(first) - 1), *[6] * 256, *[1] * len(words), 3, 4]
    scores = [0.0] * (256 + len(first)) + [float(-index) for index in range(len(words))] + [0.0, 0.0]
    fields = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.merges": None}
    fields |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.scores": scores}
    fields |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    fields |= {"tokenizer.ggml.unknown_token_id": 0}
    changes = {"head_dim": 16} if architecture.startswith("gemma") else {}
    model = make_model(architecture, vocab_size=len(tokens), pad_token_id=None, **changes)
    write_gguf(tmp_path / "model.gguf", model, architecture, tokenizer=fields)
    library = read(tmp_path / "model.gguf", tmp_path / "out")
    assert library.get_vocab_size(with_added_tokens=True) == len(tokens)
    ids = library.encode("<|user|>ab<tag>é", add_special_tokens=False).ids
    assert ids[0] == tokens.index("<|user|>")
    assert tokens.index("<tag>") in ids
    assert ids[-2:] == [tokens.index("<0xC3>"), tokens.index("<0xA9>")]


def test_names_that_a_class_of_transformers_adds_are_refused(tmp_path: Path) -> None:
    """Gemma's class adds `<pad>`, `<bos>` and others behind a list that lacks them: ids beyond the model."""
    tokens = ["<unk>", *LETTERS]
    fields = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None, "tokenizer.ggml.tokens": tokens}
    fields |= {"tokenizer.ggml.token_type": [2, *[1] * 256], "tokenizer.ggml.scores": [0.0] * 257}
    fields |= {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    write_gguf(tmp_path / "model.gguf", make_model("gemma2", head_dim=16), "gemma2", tokenizer=fields)
    with pytest.raises(ModelFilesError, match=r"a list of 257 tokens, and the tokenizer made of it has 26\d"):
        write_tokenizer(tmp_path / "model.gguf", tmp_path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pre": "a-new-way"}, r"cuts texts in the way 'a-new-way' \(tokenizer\.ggml\.pre\), which is not known"),
        ({"pre": "kimi-k2"}, "'kimi-k2'"),
        ({"merges": None}, r"has no tokenizer\.ggml\.merges"),
        ({"merges": ["a q"]}, "merges that make no token: 'a q'"),
        ({"merges": ["ab"]}, "merges that make no token: 'ab'"),
        ({"token_type": [1, 1]}, r"tokenizer\.ggml\.token_type of another length"),
        ({"model": "rwkv", "merges": None}, "has a tokenizer that cannot be read: .*rwkv"),
        ({"tokens": [*LETTERS, "ab", "a"]}, "lists 'a' twice"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    tokens = keys.pop("tokens", [*LETTERS, "ab", "<|end|>"])
    file = write(tmp_path, tokens, [*[1] * 257, 3], **{"pre": "gpt-2", **keys})
    with pytest.raises(ModelFilesError, match=words):
        write_tokenizer(file, tmp_path)
