"""Encodes texts with a SentencePiece model whose pieces have the ids of another file, as Marian and M2M100 do.

Such a model folder has its tokens in vocab.json, and the model that cuts texts beside it. Marian has one model for the
language of its input and another one for its output. No tokenizer.json says both, so the shard's package writes one
for the way from ids to texts, and `textmill_pieces.json` with what the way from texts to ids needs.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tokenizers

PIECES_FILE = "textmill_pieces.json"
_CODE_START, _CODE_END = ">>", "<<"


class EncodedText(Protocol):
    """Token ids of a text, and the characters from `start` to `stop` for which each token stands."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class Encoder(Protocol):
    """The part of `tokenizers.Tokenizer` that turns texts into ids."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> EncodedText: ...

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool = True) -> Sequence[EncodedText]: ...

    def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool = True) -> Sequence[EncodedText]: ...


@dataclass(frozen=True, slots=True)
class PieceEncoding:
    """Ids and offsets of a text; tokens that the encoder added have the offsets (0, 0)."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class PieceEncoder:
    """Cuts a text at added tokens, and each part between them by the SentencePiece model."""

    def __init__(self, model: Any, library: tokenizers.Tokenizer, unknown: str, *, reads_codes: bool) -> None:
        self._model = model  # sentencepiece.SentencePieceProcessor
        self._ids: dict[str, int] = library.get_vocab(with_added_tokens=True)
        self._unknown_id = self._ids[unknown]
        self._reads_codes = reads_codes
        added = sorted((token.content for token in library.get_added_tokens_decoder().values()), key=len, reverse=True)
        self._added = re.compile("(" + "|".join(map(re.escape, added)) + ")") if added else None
        plain: list[int] = library.encode("a", add_special_tokens=False).ids
        whole: list[int] = library.encode("a").ids
        start = next(start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
        self._before, self._behind = whole[:start], whole[start + len(plain) :]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> PieceEncoding:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        parts = [text] if self._added is None else self._added.split(text)
        at = 0
        for number, part in enumerate(parts):
            if number % 2:  # between the parts of a text stand the added tokens
                ids.append(self._ids[part])
                offsets.append((at, at + len(part)))
            elif part:
                self._encode_part(part, at, ids, offsets)
            at += len(part)
        if not add_special_tokens:
            return PieceEncoding(ids, offsets)
        none = (0, 0)
        return PieceEncoding(
            [*self._before, *ids, *self._behind],
            [*(none for _ in self._before), *offsets, *(none for _ in self._behind)],
        )

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool = True) -> list[PieceEncoding]:
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    encode_batch_fast = encode_batch

    def _encode_part(self, part: str, at: int, ids: list[int], offsets: list[tuple[int, int]]) -> None:
        if self._reads_codes and part.startswith(_CODE_START) and (end := part.find(_CODE_END)) != -1:
            stop = end + len(_CODE_END)
            ids.append(self._ids.get(part[:stop], self._unknown_id))
            offsets.append((at, at + stop))
            part, at = part[stop:], at + stop
        found = self._model.EncodeAsOffsetMapping(part)
        unknown_id, id_of = self._unknown_id, self._ids.get
        # A piece without an id in the SentencePiece model may have an id in the vocabulary, as a piece of the output.
        ids += [id_of(piece, unknown_id) for piece in found["pieces"]]
        offsets += [(at + start, at + stop) for start, stop in found["offsets"]]


def read_encoder(folder: Path, library: tokenizers.Tokenizer) -> Encoder:
    """Return the library itself, or the encoder of a SentencePiece model that `textmill_pieces.json` names.

    Raises ValueError and OSError for a file that cannot be read.
    """
    path = folder / PIECES_FILE
    if not path.is_file():
        encoder: Encoder = library
        return encoder
    from sentencepiece import SentencePieceProcessor  # most models need none

    said = json.loads(path.read_bytes())
    try:
        model = SentencePieceProcessor(model_file=str(folder / said["model"]))
    except RuntimeError as error:
        raise ValueError(f"{folder / said['model']} is no SentencePiece model: {error}") from error
    return PieceEncoder(model, library, said["unknown"], reads_codes=said["reads_codes"])
