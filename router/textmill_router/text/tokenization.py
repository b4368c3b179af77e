"""Turns text into token ids and says what each id means; only this file encodes with the library's tokenizer."""

import asyncio
import json
import os
from array import array
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tokenizers

from textmill_router.cores import usable_cores
from textmill_router.request import token_array
from textmill_router.text.detokenizer import (
    Detokenizer,
    TableDetokenizer,
    WindowDetokenizer,
    build_piece_table,
    byte_level_bytes,
)
from textmill_router.text.normalized_tokens import NormalizedTokens
from textmill_router.text.piece_encoder import EncodedText, Encoder
from textmill_router.text.tokenizer_files import read_tokenizer_files

# A text of at most so many characters is encoded at once, in under 0.6 ms; a longer text goes to a thread.
INLINE_CHARACTERS = 2000
MAX_THREADS = 4
BYTES_PER_COMPOSED_BYTE = 3  # canonical composition (NFC) makes a text at most this many times shorter


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of a text. Only short texts, and texts encoded with `wants_offsets`, have `byte_offsets`."""

    ids: "array[int]"
    _text: str
    _library: EncodedText | None
    _num_lead_tokens: int = 0  # tokens of a line break that was put before the text in order to encode it

    @property
    def byte_offsets(self) -> list[tuple[int, int]]:
        """Return (start, stop) of each token in bytes of the text, and (0, 0) for tokens that the tokenizer added."""
        assert self._library is not None, "encode with wants_offsets=True"
        offsets: list[tuple[int, int]] = self._library.offsets
        if self._num_lead_tokens:
            offsets = [(start - 1, stop - 1) for start, stop in offsets[self._num_lead_tokens :]]
        if self._text.isascii():
            return offsets
        byte_of = [0]
        for character in self._text:
            byte_of.append(byte_of[-1] + len(character.encode("utf-8", "surrogatepass")))
        return [(byte_of[start], byte_of[stop]) for start, stop in offsets]


class Tokenizer:
    """A `tokenizers.Tokenizer` that nothing changes after load, its encoder, and the tables made from it."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        digest: str,
        bos_token: str | None,
        eos_token: str | None,
        num_threads: int | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self._library = library
        self._encoder: Encoder = library if encoder is None else encoder
        self.digest = digest  # hex blake2b-16 of tokenizer.json
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.vocab_size: int = library.get_vocab_size(with_added_tokens=True)
        # One more than the largest id. There may be fewer tokens, because no token need have a given id.
        self.num_ids = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._special_texts: dict[int, str] = {
            token_id: token.content for token_id, token in library.get_added_tokens_decoder().items() if token.special
        }
        self.special_ids = frozenset(self._special_texts)
        self._newline_lead = _newline_lead(self._encoder)
        self._table = build_piece_table(library, self.special_ids)
        self.longest_token_bytes = _longest_token_bytes(library)
        # Two or more texts are encoded side by side; the library gives the GIL back while it works.
        self._pool = ThreadPoolExecutor(num_threads or default_tokenize_threads(usable_cores()), "tokenize")

    @classmethod
    def load(cls, folder: str | Path, num_threads: int | None = None) -> Self:
        """Read the tokenizer files of a folder, which takes a second. Raises TokenizerError.

        `num_threads` threads encode long texts; the default is half the cores, at most four.
        """
        # The library reads this at each call. A batch of one text needs no second pool of threads inside the library.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        files = read_tokenizer_files(Path(folder))
        return cls(files.library, files.digest, files.bos_token, files.eos_token, num_threads, files.encoder)

    def close(self) -> None:
        """End the threads. Texts that still wait for a thread are not encoded."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str, add_special_tokens: bool = True, wants_offsets: bool = False) -> Encoding:
        """Encode a short text at once and a long text in a thread, first come, first served."""
        if len(text) <= INLINE_CHARACTERS:
            encoding = self._encoder.encode(text, add_special_tokens=add_special_tokens)
            return Encoding(token_array(encoding.ids), text, encoding)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._encode_long, text, add_special_tokens, wants_offsets)

    def encode_plain(self, text: str) -> "array[int]":
        """Encodes a text of a few characters at once, without special tokens."""
        return token_array(self._encoder.encode(text, add_special_tokens=False).ids)

    def _encode_long(self, text: str, add_special_tokens: bool, wants_offsets: bool) -> Encoding:
        # The library's calls for batches release the GIL, its `encode` does not.
        encode = self._encoder.encode_batch if wants_offsets else self._encoder.encode_batch_fast
        encoding = encode([text], add_special_tokens=add_special_tokens)[0]
        return Encoding(token_array(encoding.ids), text, encoding if wants_offsets else None)

    async def encode_pieces(self, pieces: Sequence[str], wants_offsets: bool = False) -> list[Encoding]:
        """Encode texts that follow one another, with no token across a joint and nothing added at either end."""
        [first, *others] = pieces
        encodings = [await self.encode(first, add_special_tokens=False, wants_offsets=wants_offsets)]
        if others:
            loop = asyncio.get_running_loop()
            encodings += await loop.run_in_executor(self._pool, self._encode_followers, others)
        return encodings

    def _encode_followers(self, pieces: Sequence[str]) -> list[Encoding]:
        """Encode texts that begin inside a line, without the space that some tokenizers put before a text."""
        lead = self._newline_lead or []
        encode = self._encoder.encode_batch
        encodings = []
        after_newline = encode(["\n" * bool(lead) + piece for piece in pieces], add_special_tokens=False)
        for piece, found in zip(pieces, after_newline, strict=True):
            if found.ids[: len(lead)] == lead:
                encodings.append(Encoding(token_array(found.ids[len(lead) :]), piece, found, len(lead)))
            else:  # the line break has become one token with what follows
                [found] = encode([piece], add_special_tokens=False)
                encodings.append(Encoding(token_array(found.ids), piece, found))
        return encodings

    def edge_ids(self) -> tuple["array[int]", "array[int]"]:
        """Return the ids that are put before a prompt and behind a prompt."""
        plain: list[int] = self._encoder.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._encoder.encode("a").ids
        start = next(start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
        return token_array(whole[:start]), token_array(whole[start + len(plain) :])

    @property
    def special_texts(self) -> frozenset[str]:
        """The texts that the tokenizer reads as special tokens wherever they stand in a prompt."""
        return frozenset(self._special_texts.values())

    @property
    def plain_added_texts(self) -> frozenset[str]:
        """The texts that the tokenizer reads as one ordinary token wherever they stand in a prompt."""
        added = self._library.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if not token.special)

    def normalized_tokens(self, texts: Collection[str]) -> NormalizedTokens | None:
        """Return those of these added tokens that the library looks for in the normalised text, if there are some."""
        added = self._library.get_added_tokens_decoder().values()
        if self._library.normalizer is None or not any(token.normalized and token.content in texts for token in added):
            return None
        return NormalizedTokens(self._library, texts)

    def cannot_fit(self, text: str, max_tokens: int) -> bool:
        """Whether the text is longer than `max_tokens` times the longest token, found without encoding the text."""
        if self.longest_token_bytes is None:
            return False
        max_bytes = max_tokens * self.longest_token_bytes
        return len(text) * 4 > max_bytes and len(text.encode("utf-8", "surrogatepass")) > max_bytes

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_texts

    def special_ids_of(self, texts: Collection[str]) -> frozenset[int]:
        """Return the ids of those texts that are special tokens."""
        return frozenset(token_id for token_id, text in self._special_texts.items() if text in texts)

    def id_to_text(self, token_id: int) -> str:
        """Return the text of one token: special tokens literally, parts of characters as U+FFFD, unknown ids as ""."""
        special = self._special_texts.get(token_id)
        if special is not None:
            return special
        if self._table is None:
            return self._library.decode([token_id], skip_special_tokens=False)
        text = self._table.texts[token_id] if token_id < len(self._table.texts) else ""
        return self._table.fragments[token_id].decode(errors="replace") if text is None else text

    def id_to_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, which may be a part of a character."""
        if self._table is not None and token_id in self._table.fragments:
            return self._table.fragments[token_id]
        return self.id_to_text(token_id).encode("utf-8", "replace")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Return the text of the ids as the library joins them."""
        return self._library.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str:
        """Return the token as the vocabulary writes it, for example with `Ġ` for a space; "" for unknown ids."""
        return self._library.id_to_token(token_id) or ""

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def new_detokenizer(self, prompt_ids: "array[int]") -> Detokenizer:
        """Return a detokenizer for the output that follows this prompt."""
        if self._table is None:
            return WindowDetokenizer(self._library, self.special_ids, prompt_ids)
        return TableDetokenizer(self._table, follows_text=any(i not in self.special_ids for i in prompt_ids))


def default_tokenize_threads(num_cores: int) -> int:
    """Return half the cores, at least one and at most `MAX_THREADS`."""
    return min(MAX_THREADS, max(1, num_cores // 2))


def _newline_lead(encoder: Encoder) -> list[int] | None:
    """Return the ids of a line break, or None for an encoder that encodes start and middle of a text alike."""
    newline: list[int] = encoder.encode("\n", add_special_tokens=False).ids
    alone: list[int] = encoder.encode("a", add_special_tokens=False).ids
    after: list[int] = encoder.encode("\na", add_special_tokens=False).ids
    return newline if after[: len(newline)] == newline and after[len(newline) :] != alone else None


def _longest_token_bytes(library: tokenizers.Tokenizer) -> int | None:
    """Return the most bytes of text that one token can stand for; None where one token can stand for any length."""
    parts = json.loads(library.to_str())
    model = parts["model"]
    pre_tokenizer = parts.get("pre_tokenizer") or {}
    stages = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    is_byte_level = any(stage.get("type") == "ByteLevel" for stage in stages)
    factor = 1
    normalizer = parts.get("normalizer") or {}
    for stage in normalizer.get("normalizers", [normalizer] if normalizer else []):
        if stage.get("type") == "NFC":
            factor = BYTES_PER_COMPOSED_BYTE
        elif stage.get("type") not in ("Prepend", "Replace") or stage.get("content") == "":
            return None
    swallows_spaces = any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
    removes_text = any(stage.get("type") in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer") for stage in stages)
    if model["type"] != "BPE" or swallows_spaces or removes_text or not (is_byte_level or model.get("byte_fallback")):
        return None
    size = byte_level_bytes if is_byte_level else str.encode
    longest = max(len(size(token)) for token in library.get_vocab(with_added_tokens=True))
    return longest * factor
