"""The token ids of bad words: what a tokenizer makes of each word alone and behind a space."""

from pathlib import Path

import pytest
from textmill_router.text.bad_words import bad_sequences
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import END, END_ID, FIRST_MERGE_ID, write_byte_tokenizer

MERGES = ((b" ", b"b"), (b"a", b"d"), (b" b", b"ad"))  # " b", "ad", " bad"
AD, SPACE_BAD = FIRST_MERGE_ID + 1, FIRST_MERGE_ID + 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("words")
    return Tokenizer.load(write_byte_tokenizer(folder, MERGES))


@pytest.mark.parametrize(
    ("words", "sequences"),
    [
        (("bad",), ((ord("b"), AD), (SPACE_BAD,))),  # vLLM leaves out the second one, whose length is another
        (("  bad", "bad"), ((ord("b"), AD), (SPACE_BAD,))),
        (("x",), ((ord("x"),), (32, ord("x")))),
        (("\n",), ((10,), (32, 10))),
        ((" ",), ((32,), (32, 32))),
        ((END,), ((END_ID,), (32, END_ID))),
        (("é",), (tuple("é".encode()), (32, *"é".encode()))),
        ((), ()),
    ],
)
def test_words_become_sequences(
    tokenizer: Tokenizer, words: tuple[str, ...], sequences: tuple[tuple[int, ...], ...]
) -> None:
    assert bad_sequences(tokenizer, words, num_ids=tokenizer.num_ids) == sequences


def test_sequence_that_the_model_cannot_give_is_left_out(tokenizer: Tokenizer) -> None:
    assert bad_sequences(tokenizer, ("bad",), num_ids=SPACE_BAD) == ((ord("b"), AD),)
