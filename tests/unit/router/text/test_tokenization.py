"""Encoding, offsets, special tokens and the early refusal."""

import asyncio
import json
from pathlib import Path

import pytest
from textmill_router.text.tokenization import INLINE_CHARACTERS, Tokenizer

from tests.fakes.byte_tokenizer import BEGIN, BEGIN_ID, END, END_ID, make_byte_tokenizer, write_byte_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model", merges=[(b"a", b"b"), (b"ab", b"c")])


def encode(tokenizer: Tokenizer, text: str, **options: bool) -> list[int]:
    return list(asyncio.run(tokenizer.encode(text, **options)).ids)


@pytest.mark.parametrize("length", [10, INLINE_CHARACTERS + 1000], ids=["inline", "thread"])
def test_ids_are_those_of_the_library(folder: Path, length: int) -> None:
    text = ("abc é 日本 😀 " * length)[:length]
    tokenizer = Tokenizer.load(folder)
    library = make_byte_tokenizer(merges=[(b"a", b"b"), (b"ab", b"c")])
    assert encode(tokenizer, text) == library.encode(text).ids
    assert encode(tokenizer, text, add_special_tokens=False) == library.encode(text, add_special_tokens=False).ids
    tokenizer.close()


@pytest.mark.parametrize("times", [1, 400], ids=["inline", "thread"])
def test_offsets_are_bytes_of_the_text(folder: Path, times: int) -> None:
    text = "aé日b" * times
    tokenizer = Tokenizer.load(folder)
    encoding = asyncio.run(tokenizer.encode(text * 2, wants_offsets=True))
    offsets = encoding.byte_offsets
    assert offsets[0] == (0, 0)  # the token that the tokenizer adds
    assert offsets[1:8] == [(0, 1), (1, 3), (1, 3), (3, 6), (3, 6), (3, 6), (6, 7)]
    data = (text * 2).encode()
    for token_id, (start, stop) in zip(encoding.ids, offsets, strict=True):
        assert token_id == BEGIN_ID or bytes([token_id]) in data[start:stop]
    tokenizer.close()


def test_event_loop_runs_on_while_a_long_text_is_encoded(folder: Path) -> None:
    async def check() -> None:
        tokenizer = Tokenizer.load(folder)
        task = asyncio.create_task(tokenizer.encode("abc " * 200_000))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(task.result().ids) == 400_001
        assert turns > 10
        tokenizer.close()

    asyncio.run(check())


def test_special_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert encode(tokenizer, f"a{END}") == [BEGIN_ID, 97, END_ID]
    assert [tokenizer.is_special(i) for i in (97, BEGIN_ID, END_ID)] == [False, True, True]
    assert tokenizer.id_to_text(END_ID) == END
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BEGIN, END)


def test_text_of_single_ids(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert [tokenizer.id_to_text(i) for i in (97, 0xC3, 258, 10_000)] == ["a", "\ufffd", "ab", ""]


def test_text_that_cannot_fit_is_known_before_encoding(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.longest_token_bytes == len(BEGIN)
    limit = 3 * len(BEGIN)
    assert not tokenizer.cannot_fit("x" * limit, 3)
    assert tokenizer.cannot_fit("x" * (limit + 1), 3)
    assert tokenizer.cannot_fit("é" * (limit // 2 + 1), 3)


def test_no_early_refusal_where_a_token_can_swallow_any_length(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][0]["rstrip"] = True
    path.write_text(json.dumps(content))
    tokenizer = Tokenizer.load(folder)
    text = BEGIN + " " * 1000
    assert encode(tokenizer, text, add_special_tokens=False) == [BEGIN_ID]
    assert not tokenizer.cannot_fit(text, 1)
