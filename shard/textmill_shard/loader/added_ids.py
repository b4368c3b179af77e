"""The ids of tokens beside a vocabulary: transformers' class must give those with which the model was trained."""

from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.model_files import read_json

_CONFIG, _ADDED = "tokenizer_config.json", "added_tokens.json"
_NLLB = "NllbTokenizer"
_FAIRSEQ_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_FAIRSEQ_OFFSET = 1  # fairseq has one token more than SentencePiece before the pieces


def languages_of(folder: Path, tokenizer: Any) -> dict[int, AddedToken]:
    """Return the tokens beside the pieces of NLLB by their ids, empty for another class and where the files list them.

    transformers 5.23 gives the languages of such a folder no ids, or ids behind that of the mask. fairseq, and
    transformers 4, put the languages behind the pieces, and the mask behind the languages.
    """
    if type(tokenizer).__name__ != _NLLB or _listed_ids(folder):
        return {}
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / tokenizer.vocab_files_names["vocab_file"]))
    first = model.get_piece_size() + _FAIRSEQ_OFFSET
    tokens = {first + place: _special(code) for place, code in enumerate(FAIRSEQ_LANGUAGE_CODES)}
    tokens[first + len(tokens)] = AddedToken("<mask>", special=True, normalized=True, lstrip=True)
    return {**{token_id: _special(text) for token_id, text in enumerate(_FAIRSEQ_FIRST)}, **tokens}


def check_added_ids(folder: Path, tokenizer: Any) -> None:
    """Raises ModelFilesError for a token with another id than the files list, and for an unknown token around texts."""
    for text, token_id in _listed_ids(folder).items():
        found = tokenizer.convert_tokens_to_ids(text)
        if found != token_id:
            raise ModelFilesError(
                f"{folder} lists the token {text!r} with the id {token_id}, and {type(tokenizer).__name__} of "
                f"transformers gives {found}: copy the model's tokenizer.json there"
            )
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokenizer("").input_ids:
        raise ModelFilesError(
            f"{type(tokenizer).__name__} of transformers puts a token around texts that the vocabulary of {folder} "
            "lacks: copy the model's tokenizer.json there, or correct the special tokens of tokenizer_config.json"
        )


def _listed_ids(folder: Path) -> dict[str, int]:
    """Return the ids that tokenizer_config.json, or without a list there added_tokens.json, gives to texts."""
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    entries = config.get("added_tokens_decoder")
    if isinstance(entries, dict):
        named = {entry.get("content"): number for number, entry in entries.items() if isinstance(entry, dict)}
        return {text: int(number) for text, number in named.items() if isinstance(text, str) and number.isdecimal()}
    added = read_json(folder / _ADDED) if (folder / _ADDED).is_file() else {}
    return {text: number for text, number in added.items() if isinstance(number, int)}


def _special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)
