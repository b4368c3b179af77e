"""The router reads the tokenizer that the shard's package makes of vocabulary files as transformers reads the files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from textmill_router.serving.languages import read_language_codes
from textmill_router.tasks.text_reader import TextReader
from textmill_router.text.tokenization import Tokenizer
from textmill_shard.loader.tokenizer_convert import convert_tokenizer
from transformers import AutoTokenizer
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from tests.fakes.vocabulary_files import SENTENCES, TEXTS, write_family


def list_languages(folder: Path) -> None:
    """Write the tokens of NLLB with their ids, as transformers 4 writes them beside a vocabulary."""
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model")).get_piece_size()
    behind = enumerate([*FAIRSEQ_LANGUAGE_CODES, "<mask>"], size + 1)
    tokens = [*enumerate(("<s>", "<pad>", "</s>", "<unk>")), *behind]
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    entries = {str(number): {"content": text, **flags} for number, text in tokens}
    config = {"added_tokens_decoder": entries, "additional_special_tokens": FAIRSEQ_LANGUAGE_CODES}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "NllbTokenizer"}))


FAMILIES = ("bert", "roberta", "gpt2", "t5", "albert", "xlm-roberta", "mbart", "nllb")


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    folder = write_family(tmp_path / "model", family)
    if family == "nllb":
        list_languages(folder)  # without the list transformers 5.23 gives the languages no ids
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


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("family", ["marian", "m2m_100"])
def test_ids_and_texts_of_pieces_are_those_of_the_class_in_python(tmp_path: Path, family: str) -> None:
    """The class takes spaces away from both ends of a text, and a stream of tokens only one at the start."""
    folder = write_family(tmp_path / "model", family)
    expected: Any = AutoTokenizer.from_pretrained(folder)
    made = Tokenizer.load(convert_tokenizer(folder, tmp_path / "cache"))
    codes = (
        ">>de<< The fox",
        ">>xx<<The fox",
        ">>de<<",
        ">> no",
        "a >>de<< b",
        "</s>>>el<< x",
        "__en__ so __de__",
        "<<",
    )
    try:
        for text in (*TEXTS, *SENTENCES, *codes):
            ids = expected(text).input_ids
            encoding = asyncio.run(made.encode(text))
            assert list(encoding.ids) == ids, text
            assert len(encoding.byte_offsets) == len(ids)
            read = expected.decode(ids, skip_special_tokens=True)
            assert made.decode(ids, skip_special_tokens=True).strip() == read, text
            detokenizer = made.new_detokenizer(encoding.ids[:0])
            assert ("".join(map(detokenizer.step, ids)) + detokenizer.flush()).strip() == read, text
        assert made.token_to_id(expected.pad_token) == expected.pad_token_id
        assert made.eos_token == expected.eos_token
    finally:
        made.close()


def test_long_texts_and_pieces_that_follow_one_another_are_read_alike(tmp_path: Path) -> None:
    made = Tokenizer.load(convert_tokenizer(write_family(tmp_path / "model", "m2m_100"), tmp_path / "cache"))
    text = " ".join(SENTENCES * 20)  # long enough for a thread
    try:
        long = asyncio.run(made.encode(text, add_special_tokens=False, wants_offsets=True))
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(tmp_path / "model" / "sentencepiece.bpe.model")
        ).encode(text, out_type=str)
        assert list(long.ids) == [made.token_to_id(piece) or made.token_to_id("<unk>") for piece in model]
        data = text.encode()
        told = [data[start:stop].decode() for start, stop in long.byte_offsets]
        assert "".join(told).replace(" ", "") == text.replace(" ", "")
        pieces = asyncio.run(made.encode_pieces(["The fox", " and the dog"]))
        assert [list(one.ids) for one in pieces] == [
            list(made.encode_plain(one)) for one in ("The fox", " and the dog")
        ]
    finally:
        made.close()


@pytest.mark.parametrize("listing", ["none", "map", "config"])
def test_the_languages_of_nllb_follow_its_pieces_and_the_mask_follows_them(tmp_path: Path, listing: str) -> None:
    """In facebook/nllb-200 the pieces end with the id 256000, ace_Arab is 256001, eng_Latn 256047 and <mask> 256203."""
    folder = write_family(tmp_path / "model", "nllb")
    codes = {"additional_special_tokens": FAIRSEQ_LANGUAGE_CODES, "mask_token": "<mask>"}
    if listing == "map":
        (folder / "special_tokens_map.json").write_text(json.dumps(codes))
    elif listing == "config":
        (folder / "tokenizer_config.json").write_text(json.dumps({**codes, "tokenizer_class": "NllbTokenizer"}))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    last = model.get_piece_size()
    converted = convert_tokenizer(folder, tmp_path / "cache")
    made = Tokenizer.load(converted)
    try:
        found = read_language_codes(converted, made)
        assert found is not None
        assert (found.ids["ace_Arab"] - last, found.ids["eng_Latn"] - last) == (256001 - 256000, 256047 - 256000)
        assert made.token_to_id("<mask>") == last + 203
        pieces = [3 if piece == model.unk_id() else piece + 1 for piece in model.encode(SENTENCES[0])]
        assert list(asyncio.run(made.encode(SENTENCES[0])).ids) == [last + 47, *pieces, 2]
    finally:
        made.close()


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
