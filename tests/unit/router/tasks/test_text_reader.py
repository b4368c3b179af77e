"""Encodings that are cut and finished by hand are those that the library makes with its own truncation."""

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textmill_router.tasks.text_reader import TextReader, cut, pair_lengths, token_types

from tests.fakes.word_tokenizer import CLS_ID, MASK_ID, UNKNOWN_ID, make_word_tokenizer, write_word_tokenizer


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TextReader:
    return TextReader.load(write_word_tokenizer(tmp_path_factory.mktemp("model")), 1)


TEXT, PAIR = "the happy dog lives in London", "a sunny day, Sarah!"


def test_finished_encodings_are_those_of_the_library(reader: TextReader) -> None:
    library = make_word_tokenizer()
    first, second = asyncio.run(reader.encode([TEXT, PAIR]))
    whole, expected = reader.finish(first, second), library.encode(TEXT, PAIR)
    assert (whole.ids, whole.offsets, whole.type_ids) == (expected.ids, expected.offsets, expected.type_ids)
    assert token_types(whole, 2) == bytes(expected.type_ids)
    assert token_types(whole, 0) == b""
    assert reader.finish(first).ids == library.encode(TEXT).ids
    assert (reader.num_added(is_pair=False), reader.num_added(is_pair=True)) == (2, 3)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_is_the_librarys_truncation(reader: TextReader, side: str) -> None:
    library = make_word_tokenizer()
    library.enable_truncation(6, direction=side)
    [encoding] = asyncio.run(reader.encode([TEXT]))
    assert cut(encoding, 4, "left" if side == "left" else "right")
    assert reader.finish(encoding).ids == library.encode(TEXT).ids
    assert not cut(encoding, 4)


@given(first=st.integers(1, 30), second=st.integers(1, 30), room=st.integers(2, 40))
def test_pairs_are_cut_as_longest_first(first: int, second: int, room: int) -> None:
    library = make_word_tokenizer()
    library.enable_truncation(room + 3, strategy="longest_first")
    encoding = library.encode("dog " * first, "cat " * second)
    kept = [sum(1 for sequence in encoding.sequence_ids if sequence == one) for one in (0, 1)]
    assert pair_lengths(first, second, room) == tuple(kept)


def test_long_texts_are_encoded_by_a_thread(reader: TextReader) -> None:
    async def encode() -> list[int]:
        [encoding] = await reader.encode(["dog " * 1000])
        return list(encoding.ids)

    assert len(asyncio.run(encode())) == 1000
    assert any(thread.name.startswith("tokenize") for thread in threading.enumerate())


def test_special_tokens_come_from_the_models_files(reader: TextReader, tmp_path: Path) -> None:
    assert (reader.special.cls, reader.special.mask, reader.special.unknown) == (CLS_ID, MASK_ID, UNKNOWN_ID)
    folder = write_word_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    bare = TextReader.load(folder, 1)
    assert (bare.special.cls, bare.special.mask, bare.special.unknown) == (None, None, UNKNOWN_ID)
    bare.close()
