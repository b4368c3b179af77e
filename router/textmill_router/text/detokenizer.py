"""Turns token ids into text, one token at a time, at a cost that does not grow with the text.

There are two detokenizers, and the choice is made once, at load. Byte-level and SentencePiece vocabularies have a table
from id to text, with incremental UTF-8. All other vocabularies use a short sliding window over `Tokenizer.decode`. Both
skip special tokens.
"""

import json
from codecs import utf_8_decode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in SentencePiece vocabularies
CHECK_TEXT = (
    "The  quick (brown) fox's 1,234.5 tables: naïve café, Straße, Ελλάδα, Москва, 東京の天気, 서울, עברית, हिन्दी, "
    "\N{GRINNING FACE}\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5} end."
    "\n\n\tif x != y:\n\t\treturn {'a': [0]}\n"
)


class Detokenizer(Protocol):
    """Turns the output tokens of one request into text."""

    def step(self, token_id: int) -> str:
        """Return the text that this token completes: "" for special tokens and while a character is incomplete."""

    def flush(self) -> str:
        """Return what an incomplete character becomes when no more tokens will come."""


@dataclass(frozen=True, slots=True)
class PieceTable:
    """The text that each id adds. `texts[id]` is None where the id stands for parts of characters.

    `fragments` has the bytes of such ids.
    """

    texts: list[str | None]
    fragments: dict[int, bytes]
    num_stripped: int  # the spaces that SentencePiece takes off the start of a text


class TableDetokenizer:
    """Looks ids up in a table. The bytes of an incomplete character, at most three, are held back."""

    __slots__ = ("_fragments", "_held", "_num_stripped", "_texts")

    def __init__(self, table: PieceTable, follows_text: bool) -> None:
        self._texts = table.texts
        self._fragments = table.fragments
        self._num_stripped = 0 if follows_text else table.num_stripped
        self._held = b""

    def step(self, token_id: int) -> str:
        if self._num_stripped:
            return self._first(token_id)
        text = self._texts[token_id] if token_id < len(self._texts) else ""
        if text is not None:
            if not self._held or not text:
                return text
            return self.flush() + text  # whole characters follow, so the held bytes can never be completed
        data = self._held + self._fragments[token_id]
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def flush(self) -> str:
        # Mostly one U+FFFD; two for the beginning of a surrogate, which the codec holds back although it is invalid.
        text = self._held.decode(errors="replace")
        self._held = b""
        return text

    def _first(self, token_id: int) -> str:
        num_stripped, self._num_stripped = self._num_stripped, 0
        text = self.step(token_id)
        if not text and not self._held:
            self._num_stripped = num_stripped
        num_spaces = len(text) - len(text.lstrip(" "))
        return text[min(num_spaces, num_stripped) :]


class WindowDetokenizer:
    """Decodes the last few tokens with and without the new token, and returns the difference.

    `DecodeStream` of the library is not used, because it raises an error where bytes that began like a character turn
    out to be invalid, and because its window grows as long as bytes are invalid. Here a broken character is given up
    after `MAX_HELD` tokens.
    """

    CONTEXT = 6  # tokens before the new one that decide about spaces
    MAX_HELD = 8

    __slots__ = ("_held", "_past", "_past_text", "_skipped", "_tokenizer")

    def __init__(self, tokenizer: tokenizers.Tokenizer, skipped: Collection[int], prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._past = [token_id for token_id in prompt_ids[-4 * self.CONTEXT :] if token_id not in skipped]
        self._past = self._past[-self.CONTEXT :]
        self._past_text = self._decode(self._past)
        self._held: list[int] = []

    def step(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._held.append(token_id)
        text = self._decode(self._past + self._held)
        if len(self._held) < self.MAX_HELD and (text.endswith(REPLACEMENT) or len(text) <= len(self._past_text)):
            return ""
        return self._release(text)

    def flush(self) -> str:
        return self._release(self._decode(self._past + self._held)) if self._held else ""

    def _release(self, text: str) -> str:
        new = text[len(self._past_text) :]
        self._past = (self._past + self._held)[-self.CONTEXT :]
        self._past_text = self._decode(self._past)
        self._held = []
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def build_piece_table(tokenizer: tokenizers.Tokenizer, special_ids: Collection[int]) -> PieceTable | None:
    """Return the table of a vocabulary, or None where a table would not give exactly the text of `Tokenizer.decode`."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    fragments_by_id: dict[int, bytes] = {}
    num_stripped = 0
    if decoder.get("type") == "ByteLevel":
        fragments_by_id = {token_id: byte_level_bytes(token) for token, token_id in vocabulary.items()}
    else:
        rule = _sentencepiece_rule(decoder)
        if rule is None:
            return None
        num_stripped = rule.num_stripped
        fragments_by_id = {token_id: _sentencepiece_bytes(token, rule) for token, token_id in vocabulary.items()}
    table = _split_whole(fragments_by_id, special_ids, num_stripped)
    return table if _agrees(tokenizer, table, special_ids) else None


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token. A token with other characters is an added token, which is text."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte of byte-level vocabularies: printable bytes are themselves, others follow from 256."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - printable))}
    return alphabet


_BYTE_OF_CHARACTER = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class _SentencePieceRule:
    has_byte_fallback: bool
    num_stripped: int


def _sentencepiece_rule(decoder: dict[str, Any]) -> _SentencePieceRule | None:
    """Return the rule of a decoder of the form "mark to space, bytes, join, strip the start", else None."""
    parts = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    has_marks = False
    has_byte_fallback = False
    num_stripped = 0
    for part in parts:
        kind = part.get("type")
        if kind == "Replace" and part.get("pattern") == {"String": SPACE_MARK} and part.get("content") == " ":
            has_marks = True
        elif kind == "Metaspace" and part.get("replacement") == SPACE_MARK:
            has_marks = True
            num_stripped = 0 if part.get("prepend_scheme") == "never" else 1
        elif kind == "ByteFallback":
            has_byte_fallback = True
        elif kind == "Strip" and part.get("content") == " " and part.get("stop") == 0:
            num_stripped = int(part["start"])
        elif kind != "Fuse":
            return None
    return _SentencePieceRule(has_byte_fallback, num_stripped) if has_marks else None


def _sentencepiece_bytes(token: str, rule: _SentencePieceRule) -> bytes:
    if rule.has_byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(SPACE_MARK, " ").encode()


def _split_whole(fragments_by_id: dict[int, bytes], special_ids: Collection[int], num_stripped: int) -> PieceTable:
    texts: list[str | None] = [""] * (max(fragments_by_id, default=-1) + 1)
    fragments: dict[int, bytes] = {}
    for token_id, data in fragments_by_id.items():
        if token_id in special_ids:
            continue
        try:
            texts[token_id] = data.decode()
        except UnicodeDecodeError:
            texts[token_id] = None
            fragments[token_id] = data
    return PieceTable(texts, fragments, num_stripped)


def _agrees(tokenizer: tokenizers.Tokenizer, table: PieceTable, special_ids: Collection[int]) -> bool:
    """Whether table and library agree on a text, and on all tokens of whole characters in one sequence."""
    text_ids = tokenizer.encode(CHECK_TEXT, add_special_tokens=False).ids
    whole_ids = [token_id for token_id, text in enumerate(table.texts) if text and token_id not in special_ids]
    for ids in (text_ids, whole_ids):
        detokenizer = TableDetokenizer(table, follows_text=False)
        text = "".join(map(detokenizer.step, ids)) + detokenizer.flush()
        if text != tokenizer.decode(ids, skip_special_tokens=True):
            return False
    return True
