"""Text to token ids, and what each id means: the one file that knows the tokenizer."""

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
from textmill_router.text.tokenizer_files import read_tokenizer_files

INLINE_CHARACTERS = 2000  # encoded at once, in under 0.6 ms; longer texts go to a thread
MAX_THREADS = 4
BYTES_PER_COMPOSED_BYTE = 3  # canonical composition (NFC) makes a text at most this many times shorter


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of a text. `byte_offsets` may be asked only of a short text or one encoded with `wants_offsets`."""

    ids: "array[int]"
    _text: str
    _library: tokenizers.Encoding | None
    _num_lead_tokens: int = 0  # of a line break that was put before the text to encode it

    @property
    def byte_offsets(self) -> list[tuple[int, int]]:
        """(start, stop) of each token in bytes of the text; (0, 0) for tokens that the tokenizer added."""
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
    """A `tokenizers.Tokenizer` that is never changed after load, and the tables made from it."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        digest: str,
        bos_token: str | None,
        eos_token: str | None,
        num_threads: int | None = None,
    ) -> None:
        self._library = library
        self.digest = digest  # hex blake2b-16 of tokenizer.json
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.vocab_size: int = library.get_vocab_size(with_added_tokens=True)
        # One more than the largest id; some ids may be nobody's, so that there are fewer tokens.
        self.num_ids = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._special_texts: dict[int, str] = {
            token_id: token.content for token_id, token in library.get_added_tokens_decoder().items() if token.special
        }
        self.special_ids = frozenset(self._special_texts)
        self._newline_lead = _newline_lead(library)
        self._table = build_piece_table(library, self.special_ids)
        self.longest_token_bytes = _longest_token_bytes(library)
        # Two or more texts are encoded side by side; the library gives the GIL back while it works.
        self._pool = ThreadPoolExecutor(num_threads or default_tokenize_threads(usable_cores()), "tokenize")

    @classmethod
    def load(cls, folder: str | Path, num_threads: int | None = None) -> Self:
        """Reads tokenizer.json and, where it is there, tokenizer_config.json. Raises TokenizerError. Takes a second.

        `num_threads` encode long texts; without it half the cores, at most four.
        """
        # A batch of one needs no second pool of threads inside the library, which reads this at each call.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        files = read_tokenizer_files(Path(folder))
        return cls(files.library, files.digest, files.bos_token, files.eos_token, num_threads)

    def close(self) -> None:
        """Ends the threads; texts that still wait there are not encoded."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str, add_special_tokens: bool = True, wants_offsets: bool = False) -> Encoding:
        """Encodes a short text at once, a long one in a thread (first come, first served)."""
        if len(text) <= INLINE_CHARACTERS:
            encoding = self._library.encode(text, add_special_tokens=add_special_tokens)
            return Encoding(token_array(encoding.ids), text, encoding)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._encode_long, text, add_special_tokens, wants_offsets)

    def encode_plain(self, text: str) -> "array[int]":
        """Encodes a text of a few characters at once, without special tokens."""
        return token_array(self._library.encode(text, add_special_tokens=False).ids)

    def _encode_long(self, text: str, add_special_tokens: bool, wants_offsets: bool) -> Encoding:
        # The batch calls release the GIL, `encode` does not.
        encode = self._library.encode_batch if wants_offsets else self._library.encode_batch_fast
        encoding = encode([text], add_special_tokens=add_special_tokens)[0]
        return Encoding(token_array(encoding.ids), text, encoding if wants_offsets else None)

    async def encode_pieces(self, pieces: Sequence[str], wants_offsets: bool = False) -> list[Encoding]:
        """Texts that follow one another without a token across a joint; nothing is added at either end."""
        [first, *others] = pieces
        encodings = [await self.encode(first, add_special_tokens=False, wants_offsets=wants_offsets)]
        if others:
            loop = asyncio.get_running_loop()
            encodings += await loop.run_in_executor(self._pool, self._encode_followers, others)
        return encodings

    def _encode_followers(self, pieces: Sequence[str]) -> list[Encoding]:
        """Texts that begin inside a line: where the tokenizer puts a space before a text, it must not do so here."""
        lead = self._newline_lead or []
        encode = self._library.encode_batch
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
        """What is put before a prompt and behind it."""
        plain: list[int] = self._library.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._library.encode("a").ids
        start = next(start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
        return token_array(whole[:start]), token_array(whole[start + len(plain) :])

    @property
    def special_texts(self) -> frozenset[str]:
        """Texts that are read as special tokens wherever they stand in a prompt."""
        return frozenset(self._special_texts.values())

    @property
    def plain_added_texts(self) -> frozenset[str]:
        """Texts that are read as one token wherever they stand in a prompt, and are not special."""
        added = self._library.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if not token.special)

    def normalize(self, text: str) -> str:
        """The text as it is searched for those added tokens that are not searched for in the text itself."""
        normalizer = self._library.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def normalizes(self, texts: Collection[str]) -> bool:
        """Whether some of these added tokens are searched for in the normalised text."""
        added = self._library.get_added_tokens_decoder().values()
        return self._library.normalizer is not None and any(
            token.normalized and token.content in texts for token in added
        )

    def cannot_fit(self, text: str, max_tokens: int) -> bool:
        """Whether the text is longer than `max_tokens` of the longest token, known without encoding it."""
        if self.longest_token_bytes is None:
            return False
        max_bytes = max_tokens * self.longest_token_bytes
        return len(text) * 4 > max_bytes and len(text.encode("utf-8", "surrogatepass")) > max_bytes

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_texts

    def special_ids_of(self, texts: Collection[str]) -> frozenset[int]:
        """Ids of the special tokens among these texts; what is no special token is left out."""
        return frozenset(token_id for token_id, text in self._special_texts.items() if text in texts)

    def id_to_text(self, token_id: int) -> str:
        """Text of the token alone: special tokens literally, parts of characters as U+FFFD, unknown ids as ""."""
        special = self._special_texts.get(token_id)
        if special is not None:
            return special
        if self._table is None:
            return self._library.decode([token_id], skip_special_tokens=False)
        text = self._table.texts[token_id] if token_id < len(self._table.texts) else ""
        return self._table.fragments[token_id].decode(errors="replace") if text is None else text

    def id_to_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of the token alone, parts of characters too."""
        if self._table is not None and token_id in self._table.fragments:
            return self._table.fragments[token_id]
        return self.id_to_text(token_id).encode("utf-8", "replace")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of the ids as one text, as the library joins them."""
        return self._library.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str:
        """Return the token as the vocabulary writes it, for example with `Ġ` for a space; "" for unknown ids."""
        return self._library.id_to_token(token_id) or ""

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def new_detokenizer(self, prompt_ids: "array[int]") -> Detokenizer:
        """A detokenizer for the output that follows this prompt."""
        if self._table is None:
            return WindowDetokenizer(self._library, self.special_ids, prompt_ids)
        return TableDetokenizer(self._table, follows_text=any(i not in self.special_ids for i in prompt_ids))


def default_tokenize_threads(num_cores: int) -> int:
    """Return half the cores, at least one and at most `MAX_THREADS`."""
    return min(MAX_THREADS, max(1, num_cores // 2))


def _newline_lead(library: tokenizers.Tokenizer) -> list[int] | None:
    """Ids of a line break, where the start of a text is encoded otherwise than its middle; None where it is not."""
    newline: list[int] = library.encode("\n", add_special_tokens=False).ids
    alone: list[int] = library.encode("a", add_special_tokens=False).ids
    after: list[int] = library.encode("\na", add_special_tokens=False).ids
    return newline if after[: len(newline)] == newline and after[len(newline) :] != alone else None


def _longest_token_bytes(library: tokenizers.Tokenizer) -> int | None:
    """Most bytes of text that one token can stand for; None where a token can swallow any length."""
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
