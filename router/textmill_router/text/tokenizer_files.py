"""Reads the tokenizer of a model's folder and sets the tokenizer up as transformers 5.23 does."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from textmill_router.text.added_tokens import add_tokens, named_tokens
from textmill_router.text.piece_encoder import Encoder, read_encoder

CONFIG_NAME = "tokenizer_config.json"
SPECIAL_MAP_NAME = "special_tokens_map.json"
# Two classes of transformers do not use the post-processor of tokenizer.json. The class of GPT-NeoX serves these types
# of models and puts nothing at the ends of a prompt. The class of Code Llama puts the BOS token before a prompt.
_NEOX_CLASS, _CODE_LLAMA_CLASS = "GPTNeoXTokenizer", "CodeLlamaTokenizer"
_NEOX_TYPES = frozenset({"falcon_mamba", "gpt_neox", "mamba", "mamba2", "mpt", "olmo", "olmoe", "rwkv", "xlstm"})
_CODE_LLAMA_TYPES = frozenset({"code_llama", "llama"})


class TokenizerError(Exception):
    """The model folder has no tokenizer that can be used."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer with all tokens of its files; `digest` is the hexadecimal blake2b-16 of tokenizer.json alone."""

    library: tokenizers.Tokenizer
    encoder: Encoder  # turns texts into ids: the library itself, but for a few classes
    digest: str
    bos_token: str | None
    eos_token: str | None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json and, where the folder has them, the files beside tokenizer.json. Raises TokenizerError."""
    path = folder / "tokenizer.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}; a fast tokenizer is needed") from error
    try:
        library = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception, with the place in the file
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from error
    config = read_json_object(folder / CONFIG_NAME)
    library.no_truncation()
    library.no_padding()
    try:
        named = named_tokens(config, read_json_object(folder / SPECIAL_MAP_NAME))
        add_tokens(library, config, read_json_object(folder / "added_tokens.json"), named)
    except ValueError as error:
        raise TokenizerError(f"the tokenizer files of {folder}: {error}") from error
    bos_token = named.texts.get("bos_token")
    _fit_post_processor(library, _class_with_own_ends(folder, config), bos_token)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        encoder = read_encoder(folder, library)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"the tokenizer files of {folder}: {error}") from error
    return TokenizerFiles(library, encoder, digest, bos_token, named.texts.get("eos_token"))


def read_json_object(path: Path, *, must_exist: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where the file is missing and may be.

    Raises TokenizerError for a file that cannot be read or holds something else.
    """
    if not must_exist and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} holds {type(found).__name__}, wanted an object")
    return found


def _class_with_own_ends(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the name of transformers' class for this folder, where that class decides what stands at the ends."""
    model = read_json_object(folder / "config.json")
    model_type = model.get("model_type")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = name.removesuffix("Fast") if isinstance(name, str) else None
    if name in (None, _NEOX_CLASS) and model_type in _NEOX_TYPES:
        return _NEOX_CLASS
    if name == _NEOX_CLASS and model_type is None:
        return _NEOX_CLASS
    return name if name == _CODE_LLAMA_CLASS and model_type in (None, *_CODE_LLAMA_TYPES) else None


def _fit_post_processor(library: tokenizers.Tokenizer, class_name: str | None, bos_token: str | None) -> None:
    """Set what is put before and behind a prompt where tokenizer.json does not decide.

    `add_bos_token` and `add_eos_token` of tokenizer_config.json change nothing, because transformers does not read them
    where there is a tokenizer.json.
    """
    if class_name == _NEOX_CLASS:
        library.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    elif class_name == _CODE_LLAMA_CLASS and bos_token is not None:
        library.post_processor = TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, library.token_to_id(bos_token))]
        )
