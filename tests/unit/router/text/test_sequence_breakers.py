"""The tokens of a breaker: all tokens that contain its text, or else the last token of its encoding."""

from pathlib import Path

import pytest
from textmill_router.text import sequence_breakers
from textmill_router.text.sequence_breakers import SequenceBreakers
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import FIRST_MERGE_ID, write_byte_tokenizer

MERGES = ((b":", b" "), (b"a", b":"), (b"\n", b"\n"), (b"a:", b" "))
COLON_SPACE, A_COLON, TWO_LINES, A_COLON_SPACE = range(FIRST_MERGE_ID, FIRST_MERGE_ID + len(MERGES))


@pytest.fixture
def breakers(tmp_path: Path) -> SequenceBreakers:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path, MERGES))
    return SequenceBreakers(tokenizer, num_ids=tokenizer.num_ids)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((":",), (ord(":"), COLON_SPACE, A_COLON, A_COLON_SPACE)),
        (("\n",), (ord("\n"), TWO_LINES)),
        ((": ",), (COLON_SPACE, A_COLON_SPACE)),
        ((": ", "a:", "z"), (ord("z"), COLON_SPACE, A_COLON, A_COLON_SPACE)),
        (("<|end|>",), (257,)),  # the name of a special token is its text
        (("Human:",), (ord(":"),)),  # no token contains the text, so its encoding's last token counts
        (("é",), ("é".encode()[-1],)),
        ((), ()),
    ],
)
def test_breakers_become_ids(breakers: SequenceBreakers, texts: tuple[str, ...], expected: tuple[int, ...]) -> None:
    assert breakers.ids_of(texts) == tuple(sorted(expected))


def test_every_token_that_contains_a_text_is_found(breakers: SequenceBreakers, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path / "again", MERGES))
    for text in (" ", "|", "nd", ">"):
        expected = [token_id for token_id in range(tokenizer.num_ids) if text in tokenizer.id_to_text(token_id)]
        assert breakers.ids_of((text,)) == tuple(expected), text


def test_ids_that_the_model_lacks_are_left_out(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path, MERGES))
    breakers = SequenceBreakers(tokenizer, num_ids=A_COLON)
    assert breakers.ids_of((":",)) == (ord(":"), COLON_SPACE)
    assert breakers.ids_of(("x a:",)) == ()  # the model lacks the last token of the encoding


def test_a_nul_is_a_byte_like_another(breakers: SequenceBreakers) -> None:
    assert breakers.ids_of(("\x00",)) == (0,)


def test_only_so_many_texts_are_remembered(breakers: SequenceBreakers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_breakers, "MAX_REMEMBERED", 3)
    for number in range(40):
        assert breakers.ids_of((str(number % 7),)) == (ord(str(number % 7)),)
    assert len(breakers._found) <= 3
