"""Finds a model's chat templates and the special tokens that they name, in the files that models come with."""

import json
from pathlib import Path
from typing import Any

from textmill_router.chat.template import DEFAULT_NAME, ChatTemplates
from textmill_router.text.tokenizer_files import SPECIAL_TOKEN_KEYS, TokenizerError

MORE_SPECIAL_TOKEN_KEYS = ("mask_token",)
CONFIG_NAME = "tokenizer_config.json"


def load_chat_templates(folder: Path, config_path: Path | None = None) -> ChatTemplates:
    """Takes the first source that has a template: `config_path` when given, chat_template.jinja,
    chat_template.json, tokenizer_config.json, processor_config.json. Raises TokenizerError for files it cannot read.
    """
    given = {} if config_path is None else _read_object(config_path, must_exist=True)
    config = given or _read_object(folder / CONFIG_NAME)
    sources = _named(given.get("chat_template"))
    if not sources:
        sources = _jinja_files(folder)
    for name in ("chat_template.json", CONFIG_NAME, "processor_config.json"):
        if not sources:
            sources = _named(_read_object(folder / name).get("chat_template"))
    return ChatTemplates(sources, _special_tokens(config, folder))


def _jinja_files(folder: Path) -> dict[str, str]:
    """chat_template.jinja is the default one; others lie in additional_chat_templates by name."""
    default = folder / "chat_template.jinja"
    if not default.is_file():
        return {}
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return {path.stem: _read_text(path) for path in more} | {DEFAULT_NAME: _read_text(default)}


def _named(entry: object) -> dict[str, str]:
    """Templates by name, of a string, of a list of `{"name", "template"}` or of an object."""
    if isinstance(entry, str):
        return {DEFAULT_NAME: entry}
    if isinstance(entry, list):
        entry = {part.get("name"): part.get("template") for part in entry if isinstance(part, dict)}
    if not isinstance(entry, dict):
        return {}
    return {name: text for name, text in entry.items() if isinstance(name, str) and isinstance(text, str)}


def _special_tokens(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """`bos_token` and the like, as templates name them."""
    named = {**_read_object(folder / "special_tokens_map.json"), **config}
    tokens = {}
    for key in (*SPECIAL_TOKEN_KEYS, *MORE_SPECIAL_TOKEN_KEYS):
        token = named.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            tokens[key] = text
    return tokens


def _read_object(path: Path, must_exist: bool = False) -> dict[str, Any]:
    if not must_exist and not path.is_file():
        return {}
    try:
        found = json.loads(_read_text(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} holds {type(found).__name__}, wanted an object")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
