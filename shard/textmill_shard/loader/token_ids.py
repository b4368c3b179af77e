"""Ids of tokens that the files of a model name: which end a text, which a decoder begins with, checked when read.

transformers compares the ids that end a text with each token that it draws, so an id outside the vocabulary (-1, a
default of another model) never ends a text there and changes nothing. Here such ids are left out when the model is
loaded, because grammars and the sampler take each id as an index. An id that the model is fed must be a token.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.model_files import read_json, read_object

log = logging.getLogger(__name__)

# Lists of tokens that transformers' `generate` never draws and that this engine draws.
_SUPPRESSING_KEYS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


@dataclass(frozen=True, slots=True)
class EndIds:
    """The ids that end a text, as one file names them."""

    path: Path  # of the file
    named: tuple[object, ...]  # integers, and null where the file has a null in its list

    def within(self, vocab_size: int) -> tuple[int, ...]:
        """Give the ids that are tokens of the model, each once, in the order of the file."""
        return tuple(dict.fromkeys(named for named in self.named if is_token(named, vocab_size)))

    def log_others(self, vocab_size: int) -> None:
        """Log the ids that `within` leaves out, in one line if there are any."""
        others = [named for named in self.named if not is_token(named, vocab_size)]
        if others:
            log.warning(
                "eos_token_id names what is no token of the model, which ends no text",
                extra={"file": str(self.path), "ignored": others, "vocab_size": vocab_size},
            )


def find_end_ids(folder: Path) -> EndIds:
    """Read `eos_token_id` of generation_config.json, else of config.json, else the tokenizer's end of text.

    Raises ModelFilesError where `eos_token_id` is neither an integer nor a list of integers and nulls.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        config = read_json(path)
        found = config.get("eos_token_id")
        if found is None:
            found = read_object(config, "text_config", path=path).get("eos_token_id")
        if found is not None:
            named = tuple(found) if isinstance(found, list) else (found,)
            wrong = [each for each in named if each is not None and not _is_integer(each)]
            if wrong:
                raise ModelFilesError(
                    f"{path} has {wrong[0]!r} as eos_token_id: an id (a whole number) or a list of ids is wanted"
                )
            return EndIds(path, named)
    token_id = _end_of_tokenizer(folder)
    return EndIds(folder / "tokenizer.json", () if token_id is None else (token_id,))


def read_token_id(value: object, *, path: Path, key: str, vocab_size: int) -> int:
    """Give an id that the model will be fed. Raises ModelFilesError where the value is no token of the model."""
    if not is_token(value, vocab_size):
        raise ModelFilesError(
            f"{path} has {value!r} as {key}, and the model knows the tokens 0 to {vocab_size - 1}: correct {key}"
        )
    return value


def check_padding_id(config: Any, folder: Path) -> None:
    """Raises ModelFilesError where no layer could be built with the `pad_token_id` of the config.

    torch counts a negative id from the end, and the padding token's own value is never read.
    """
    text_config = config.get_text_config()
    padding_id, vocab_size = getattr(text_config, "pad_token_id", None), getattr(text_config, "vocab_size", None)
    if padding_id is None or not isinstance(vocab_size, int):
        return
    if not _is_integer(padding_id) or not -vocab_size <= padding_id < vocab_size:
        raise ModelFilesError(
            f"{folder / 'config.json'} has {padding_id!r} as pad_token_id, and the model knows the tokens 0 to "
            f"{vocab_size - 1}: take pad_token_id out, or give the id of a token"
        )


def warn_of_suppressed(folder: Path) -> None:
    """Log the tokens that the files forbid, because this engine draws them all the same."""
    path = folder / "generation_config.json"
    settings: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    keys = [key for key in _SUPPRESSING_KEYS if settings.get(key)]
    if keys:
        log.warning(
            "tokens that the files forbid are not forbidden here; a request can do so by logit_bias",
            extra={"file": str(path), "keys": keys},
        )


def is_token(value: object, vocab_size: int) -> TypeGuard[int]:
    """Whether a value of a JSON file is an id of a vocabulary of that size."""
    return _is_integer(value) and 0 <= value < vocab_size


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _end_of_tokenizer(folder: Path) -> int | None:
    """Find the id of the EOS token that tokenizer_config.json names by its text.

    The id stands in tokenizer.json, or in one of the files from which transformers adds tokens: in
    `added_tokens_decoder` of tokenizer_config.json, or without that key in added_tokens.json.
    """
    config_path, tokenizer_path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not (config_path.is_file() and tokenizer_path.is_file()):
        return None
    config, tokenizer = read_json(config_path), read_json(tokenizer_path)
    token = config.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        return None
    for added in tokenizer.get("added_tokens") or []:
        if isinstance(added, dict) and added.get("content") == text and _is_integer(added.get("id")):
            return int(added["id"])
    vocabulary = read_object(tokenizer, "model", path=tokenizer_path).get("vocab")
    named = vocabulary.get(text) if isinstance(vocabulary, dict) else None
    if _is_integer(named):
        return int(named)
    for listed, entry in read_object(config, "added_tokens_decoder", path=config_path).items():
        if isinstance(entry, dict) and entry.get("content") == text and listed.isdecimal():
            return int(listed)
    added_path = folder / "added_tokens.json"
    if "added_tokens_decoder" in config or not added_path.is_file():
        return None
    named = read_json(added_path).get(text)
    return int(named) if _is_integer(named) else None
