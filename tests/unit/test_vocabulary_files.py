"""The router reads the tokenizer that the shard's package makes of vocabulary files as transformers reads the files."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from textmill_router.tasks.text_reader import TextReader
from textmill_router.text.tokenization import Tokenizer
from textmill_shard.loader.tokenizer_convert import convert_tokenizer
from transformers import AutoTokenizer

from tests.fakes.vocabulary_files import SENTENCES, TEXTS, write_family

FAMILIES = ("bert", "roberta", "gpt2", "t5", "albert", "xlm-roberta", "mbart", "nllb")


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    folder = write_family(tmp_path / "model", family)
    expected: Any = AutoTokenizer.from_pretrained(folder)
    converted = convert_tokenizer(folder, tmp_path / "cache")
    made, reader = Tokenizer.load(converted), TextReader.load(converted, 1)
    try:
        for text in (*TEXTS, *SENTENCES):
            ids = expected(text).input_ids
            assert list(asyncio.run(made.encode(text)).ids) == ids, text
            assert made.decode(ids, skip_special_tokens=True) == expected.backend_tokenizer.decode(ids), text
        assert reader.special.mask == expected.mask_token_id
        assert made.eos_token == expected.eos_token
    finally:
        made.close()
        reader.close()


def test_ids_of_xlm_r_are_those_of_its_sentencepiece_model_moved_by_one(tmp_path: Path) -> None:
    """fairseq puts `<s> <pad> </s> <unk>` before the pieces, and SentencePiece `<unk> <s> </s>`."""
    folder = write_family(tmp_path / "model", "xlm-roberta")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    made = Tokenizer.load(convert_tokenizer(folder, tmp_path / "cache"))
    try:
        for text in SENTENCES:
            pieces = [3 if piece == model.unk_id() else piece + 1 for piece in model.encode(text)]
            assert list(asyncio.run(made.encode(text, add_special_tokens=False)).ids) == pieces
    finally:
        made.close()
