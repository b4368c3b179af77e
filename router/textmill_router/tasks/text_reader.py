"""Texts become rows: token ids with special tokens, pairs, cuts, and windows of long texts.

The tokenizer is held twice. One copy has no post-processor and encodes texts; the other one puts special tokens around
encodings that were cut. So the cut of one call changes nothing for another call.
"""

import asyncio
import json
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import tokenizers

from textmill_router.request import token_array
from textmill_router.text.tokenizer_files import CONFIG_NAME, SPECIAL_MAP_NAME, read_json_object, read_tokenizer_files

# Texts of at most so many characters together are encoded at once; longer ones go to a thread.
INLINE_CHARACTERS = 2000
Side = Literal["right", "left"]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The ids of the special tokens that tasks ask for; None for one that the tokenizer does not have."""

    cls: int | None
    mask: int | None
    unknown: int | None


class TextReader:
    """Encodes texts. Nothing changes a reader after its making, so threads may share it."""

    def __init__(self, library: tokenizers.Tokenizer, digest: str, special: SpecialTokens, num_threads: int) -> None:
        self.digest = digest
        self.special = special
        whole = tokenizers.Tokenizer.from_str(library.to_str())
        whole.no_truncation()
        whole.no_padding()
        parts = json.loads(whole.to_str())
        parts["post_processor"] = None
        self._whole = whole
        self._bare = tokenizers.Tokenizer.from_str(json.dumps(parts))
        # WordPiece marks the parts of a word; a token of another model is a part if no space stands before it.
        self.marks_subwords = bool(parts["model"].get("continuing_subword_prefix"))
        self._pool = ThreadPoolExecutor(num_threads, "tokenize")
        self._num_added = {False: whole.num_special_tokens_to_add(False), True: whole.num_special_tokens_to_add(True)}

    @classmethod
    def load(cls, folder: str | Path, num_threads: int) -> Self:
        """Read the tokenizer files of a folder. Raises TokenizerError."""
        files = read_tokenizer_files(Path(folder))
        named = {**read_json_object(Path(folder) / SPECIAL_MAP_NAME), **read_json_object(Path(folder) / CONFIG_NAME)}
        model = json.loads(files.library.to_str())["model"]

        def id_of(*names: object) -> int | None:
            for name in names:
                text = name.get("content") if isinstance(name, dict) else name
                found = files.library.token_to_id(text) if isinstance(text, str) else None
                if found is not None:
                    return found
            return None

        special = SpecialTokens(
            cls=id_of(named.get("cls_token")),
            mask=id_of(named.get("mask_token")),
            unknown=id_of(named.get("unk_token"), model.get("unk_token")),
        )
        return cls(files.library, files.digest, special, num_threads)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def num_added(self, *, is_pair: bool) -> int:
        """Return how many special tokens a text, or a pair of texts, gets."""
        return self._num_added[is_pair]

    async def encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Encode texts without special tokens: short ones at once, long ones in a thread."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            encode = self._bare.encode
            return [encode(text, add_special_tokens=False) for text in texts]
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode_all, list(texts))

    def encode_now(self, text: str) -> tokenizers.Encoding:
        """Encode a text of a few characters at once, without special tokens."""
        return self._bare.encode(text, add_special_tokens=False)

    def _encode_all(self, texts: list[str]) -> list[tokenizers.Encoding]:
        # The library's calls for batches release the GIL, its `encode` does not.
        return self._bare.encode_batch(texts, add_special_tokens=False)

    def finish(self, first: tokenizers.Encoding, second: tokenizers.Encoding | None = None) -> tokenizers.Encoding:
        """Return an encoding, or a pair of them, with special tokens."""
        return self._whole.post_process(first, second, True)

    def ids_of(self, text: str) -> "array[int]":
        """Return the ids of a few characters, without special tokens."""
        return token_array(self.encode_now(text).ids)

    def token_of(self, token_id: int) -> str:
        """Return the token as the vocabulary writes it; "" for an id without a token."""
        return self._whole.id_to_token(token_id) or ""

    def id_of(self, token: str) -> int | None:
        return self._whole.token_to_id(token)

    def text_of_tokens(self, tokens: Sequence[str]) -> str:
        """Return the text of tokens as the tokenizer joins them."""
        decoder = self._whole.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def text_of_ids(self, ids: Sequence[int], *, skips_special: bool) -> str:
        """Return the text of ids."""
        return self._whole.decode(list(ids), skip_special_tokens=skips_special)


def cut(encoding: tokenizers.Encoding, max_tokens: int, side: Side = "right") -> bool:
    """Cut an encoding without special tokens to so many tokens, and return whether tokens were lost.

    `side` is the end that is lost.
    """
    if len(encoding.ids) <= max_tokens:
        return False
    encoding.truncate(max_tokens, direction=side)
    return True


def pair_lengths(num_first: int, num_second: int, max_tokens: int) -> tuple[int, int]:
    """Return how many tokens of each text of a pair stay where the longer one is cut first, as the library cuts."""
    if num_first + num_second <= max_tokens:
        return num_first, num_second
    shorter, longer = sorted((num_first, num_second))
    longer = shorter if shorter > max_tokens else max(shorter, max_tokens - shorter)
    if shorter + longer > max_tokens:
        shorter = max_tokens // 2
        longer = shorter + max_tokens % 2
    return (longer, shorter) if num_first > num_second else (shorter, longer)


def token_types(encoding: tokenizers.Encoding, num_types: int) -> bytes:
    """Return the token types of a finished encoding, or no bytes where the model knows none or all are 0."""
    if num_types < 2:
        return b""
    types = encoding.type_ids
    return bytes(types) if any(types) else b""
