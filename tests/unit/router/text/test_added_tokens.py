"""Tokens of the files beside tokenizer.json have the ids and properties that transformers' AutoTokenizer gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from textmill_router.text.added_tokens import named_tokens
from textmill_router.text.tokenizer_files import TokenizerError, read_tokenizer_files
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.fakes.byte_tokenizer import BEGIN, END, make_byte_tokenizer

CONFIG = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False}


def entry(content: str, **changes: bool) -> dict[str, Any]:
    return {"content": content, "special": True, "normalized": False, **PLAIN, **changes}


# Each case has the files tokenizer_config.json, special_tokens_map.json and added_tokens.json.
FILES: dict[str, dict[str, dict[str, Any]]] = {
    "a decoder with new tokens": {
        "tokenizer_config": {
            "added_tokens_decoder": {"259": entry("<|start|>"), "260": entry("<|stop|>")},
            "eos_token": "<|stop|>",
        }
    },
    "a decoder out of order, with a gap": {
        "tokenizer_config": {"added_tokens_decoder": {"300": entry("<c>"), "9": entry("<a>"), "270": entry("<b>")}}
    },
    "a decoder that changes properties": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "256": entry(BEGIN, rstrip=True),
                "258": entry("<call>", lstrip=True),
                "97": entry("a", special=False, normalized=True, single_word=True),
            }
        }
    },
    "a decoder stands for the other files": {
        "tokenizer_config": {"added_tokens_decoder": {"259": entry("<x>", special=False)}, "pad_token": "<x>"},
        "special_tokens_map": {"eos_token": "<other>", "additional_special_tokens": ["<more>"]},
        "added_tokens": {"<late>": 261},
    },
    "added tokens alone": {"added_tokens": {"<think>": 260, "<|im_start|>": 259}},
    "added tokens that the map calls special": {
        "tokenizer_config": {"eos_token": "<|im_end|>"},
        "special_tokens_map": {"pad_token": entry("<|pad|>"), "additional_special_tokens": ["<|im_start|>"]},
        "added_tokens": {"<|im_start|>": 259, "<|im_end|>": 260, "<|pad|>": 261, "<tool>": 262},
    },
    "a map over the config": {
        "special_tokens_map": {"eos_token": entry("<|over|>", rstrip=True), "unk_token": "<unk>"},
    },
    "names of no token": {
        "tokenizer_config": {"pad_token": "<pad>", "additional_special_tokens": ["<more>", "a"], "mask_token": None}
    },
    "names as objects": {
        "tokenizer_config": {"eos_token": {"__type": "AddedToken", **entry("<e>", lstrip=True)}, "unk_token": "<call>"}
    },
    "a plain token that becomes special": {"tokenizer_config": {"cls_token": "<call>"}},
    "keys of a family's own": {
        "tokenizer_config": {"image_token": "<image>", "extra_special_tokens": {"audio_token": "<audio>"}}
    },
    "extra tokens in a list": {"tokenizer_config": {"extra_special_tokens": ["<one>", "<two>", END]}},
}


def write(folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    library = make_byte_tokenizer(add_begin=False)
    library.add_tokens([AddedToken("<call>", special=False)])
    library.save(str(folder / "tokenizer.json"))
    for name, content in ({"tokenizer_config": {}} | files).items():
        whole = {**CONFIG, **content} if name == "tokenizer_config" else content
        (folder / f"{name}.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("case", FILES)
def test_tokens_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    folder = write(tmp_path, FILES[case])
    expected = AutoTokenizer.from_pretrained(folder)
    files = read_tokenizer_files(folder)
    found = {number: repr(token) for number, token in files.library.get_added_tokens_decoder().items()}
    assert found == {number: repr(token) for number, token in expected.added_tokens_decoder.items()}
    assert (files.bos_token, files.eos_token) == (expected.bos_token, expected.eos_token)
    text = " x ".join(["", *(token.content for token in expected.added_tokens_decoder.values()), "banana <unk>"])
    assert files.library.encode(text).ids == expected(text).input_ids


@pytest.mark.parametrize("case", FILES)
def test_templates_see_the_names_that_transformers_gives_them(tmp_path: Path, case: str) -> None:
    files = FILES[case]
    expected = AutoTokenizer.from_pretrained(write(tmp_path, files)).special_tokens_map
    named = named_tokens({**CONFIG, **files.get("tokenizer_config", {})}, files.get("special_tokens_map", {}))
    expected.pop("additional_special_tokens", None)
    assert named.texts == {key: str(token) for key, token in expected.items() if isinstance(token, str | AddedToken)}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"added_tokens_decoder": []}, "is not an object"),
        ({"added_tokens_decoder": {"259": "<x>"}}, "without `content`"),
        ({"added_tokens_decoder": {"x": entry("<x>")}}, "invalid literal"),
        ({"added_tokens_decoder": {"259": {"content": "<x>", "lstrip": 1}}}, "'<x>' has lstrip 1"),
    ],
)
def test_entries_that_are_no_tokens_are_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        read_tokenizer_files(write(tmp_path, {"tokenizer_config": config}))
