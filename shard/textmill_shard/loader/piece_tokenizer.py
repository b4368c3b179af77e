"""Writes the tokenizer files of Marian and M2M100, whose pieces and their ids stand in two files.

vocab.json gives the ids, and a SentencePiece model cuts texts. No tokenizer.json can say both, because the model of
Marian's input knows only some of the pieces, and other ids. The tokenizer.json that is written turns ids into texts,
and `textmill_pieces.json` names the model with which the router turns texts into ids.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from textmill_shard.errors import ModelFilesError

PIECES_FILE = "textmill_pieces.json"
_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space
_CHUNK_IDS = 40


@dataclass(frozen=True, slots=True)
class PieceClass:
    """A class of tokenizers: the file of the model that cuts texts, and whether a text may begin with `>>code<<`."""

    model_file: str
    reads_codes: bool


PIECE_CLASSES = {
    "M2M100Tokenizer": PieceClass("sentencepiece.bpe.model", reads_codes=False),
    "MarianTokenizer": PieceClass("source.spm", reads_codes=True),
}


def write_piece_tokenizer(folder: Path, made: Path, tokenizer: Any) -> None:
    """Write tokenizer.json, tokenizer_config.json and `textmill_pieces.json` for a tokenizer of `PIECE_CLASSES`.

    Raises ModelFilesError for two vocabularies, added tokens that take spaces away, and a vocabulary whose texts
    are not those of the class.
    """
    name = type(tokenizer).__name__
    kind = PIECE_CLASSES[name]
    if getattr(tokenizer, "separate_vocabs", False):
        raise ModelFilesError(f"{folder} has two vocabularies (separate_vocabs of {name}), which are not read here")
    # Published folders list the languages of M2M100 as special tokens. The class gives them ids without the list too.
    languages: dict[str, int] = getattr(tokenizer, "lang_token_to_id", {})
    vocabulary = {**tokenizer.get_vocab(), **languages}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token=str(tokenizer.unk_token)))
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        _add(library, token, folder)
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in languages])
    library.decoder = decoders.Sequence([decoders.Replace(_MARK, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.post_processor = _ends(tokenizer)
    _check_ids(folder, tokenizer, library, vocabulary)
    _check_texts(folder, tokenizer, library, left_out=frozenset(languages.values()))
    tokenizer.save_pretrained(made)
    library.save(str(made / "tokenizer.json"))
    said = {"model": kind.model_file, "reads_codes": kind.reads_codes, "unknown": str(tokenizer.unk_token)}
    (made / PIECES_FILE).write_text(json.dumps(said))


def _add(library: Tokenizer, token: AddedToken, folder: Path) -> None:
    if token.lstrip or token.rstrip or token.single_word:
        raise ModelFilesError(
            f"{folder} has an added token {token.content!r} that takes spaces away, or is a word alone"
        )
    plain = AddedToken(token.content, special=token.special, normalized=False)
    add = library.add_special_tokens if token.special else library.add_tokens
    add([plain])


def _ends(tokenizer: Any) -> processors.TemplateProcessing:
    """Return the special tokens around a text, as the class puts them."""
    text_id = -1
    around = tokenizer.build_inputs_with_special_tokens([text_id])
    names = ["$A" if token_id == text_id else tokenizer.convert_ids_to_tokens(token_id) for token_id in around]
    special = {name: token_id for name, token_id in zip(names, around, strict=True) if token_id != text_id}
    return processors.TemplateProcessing(single=names, special_tokens=list(special.items()))


def _check_ids(folder: Path, tokenizer: Any, library: Tokenizer, vocabulary: dict[str, int]) -> None:
    """Raises ModelFilesError where a token would have another id than the class gives."""
    tokens = {**tokenizer.encoder, **vocabulary}
    wrong = [token for token in tokens if library.token_to_id(token) != tokenizer.convert_tokens_to_ids(token)]
    if wrong or len(set(tokens.values())) != len(tokens):
        found = f", first {wrong[0]!r}" if wrong else ""
        raise ModelFilesError(
            f"{folder / 'vocab.json'} gives one id to two tokens, or ids that leave no room for the added tokens{found}"
        )


def _check_texts(folder: Path, tokenizer: Any, library: Tokenizer, *, left_out: frozenset[int]) -> None:
    """Compare the texts of the ids, but for some special ones, with those of the class. Raises ModelFilesError.

    Spaces at the ends are left out, because the class takes them away, and a stream of tokens cannot.
    """
    ids = sorted(set(library.get_vocab(with_added_tokens=True).values()) - left_out)
    for start in range(0, len(ids), _CHUNK_IDS):
        chunk = ids[start : start + _CHUNK_IDS]
        found = library.decode(chunk, skip_special_tokens=True).strip()
        wanted = tokenizer.decode(chunk, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        if found != wanted:
            raise ModelFilesError(
                f"the ids from {chunk[0]} on of {folder / 'vocab.json'} have other texts by "
                f"{type(tokenizer).__name__}: {wanted!r}, and {found!r} by the pieces alone"
            )
