"""From the files of a model's folder to the library's tokenizer, set up as tokenizer_config.json says."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TokenizerError(Exception):
    """The model folder has no tokenizer that can be used."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What tokenizer.json and tokenizer_config.json say; `digest` is the hexadecimal blake2b-16 of tokenizer.json."""

    library: tokenizers.Tokenizer
    digest: str
    bos_token: str | None
    eos_token: str | None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads tokenizer.json and, where the folder has one, tokenizer_config.json. Raises TokenizerError."""
    path = folder / "tokenizer.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}; a fast tokenizer is needed") from error
    try:
        library = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception, with the place in the file
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from error
    config = _read_config(path.with_name("tokenizer_config.json"))
    library.no_truncation()
    library.no_padding()
    _add_special_tokens(library, config)
    bos_token = _token_text(config.get("bos_token"))
    eos_token = _token_text(config.get("eos_token"))
    _fit_post_processor(library, config, bos_token, eos_token)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return TokenizerFiles(library, digest, bos_token, eos_token)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path} holds {type(config).__name__}, wanted an object")
    return config


def _token_text(token: object) -> str | None:
    """A token of tokenizer_config.json: a string, an object with `content`, or null."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_special_tokens(library: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Marks as special what only the config calls so. Tokens that the vocabulary lacks are left out."""
    named = [_token_text(config.get(key)) for key in SPECIAL_TOKEN_KEYS]
    more = config.get("additional_special_tokens") or []
    named += [_token_text(token) for token in more if isinstance(more, list)]
    for entry in (config.get("added_tokens_decoder") or {}).values():
        if isinstance(entry, dict) and entry.get("special"):
            named.append(_token_text(entry))
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    for token in dict.fromkeys(named):
        if token and token not in special and library.token_to_id(token) is not None:
            library.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])


def _fit_post_processor(
    library: tokenizers.Tokenizer, config: dict[str, Any], bos_token: str | None, eos_token: str | None
) -> None:
    """Where the config says `add_bos_token` or `add_eos_token`, it wins over tokenizer.json."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    first = bos_token if config.get("add_bos_token") else None
    last = eos_token if config.get("add_eos_token") else None
    edges = [token for token in (first, last) if token]
    wanted = [library.token_to_id(token) for token in edges]
    if None in wanted:
        raise TokenizerError(f"tokenizer_config.json adds {edges}, which the vocabulary does not hold")
    plain = library.encode("a", add_special_tokens=False).ids
    if library.encode("a").ids == wanted[: bool(first)] + plain + wanted[bool(first) :]:
        return
    template = " ".join([*([first] if first else []), "$A", *([last] if last else [])])
    library.post_processor = TemplateProcessing(
        single=template, special_tokens=[(token, library.token_to_id(token)) for token in dict.fromkeys(edges)]
    )
