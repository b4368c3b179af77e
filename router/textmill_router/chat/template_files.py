"""Reads a model's chat templates, and the special tokens that they name, from the files that models come with."""

from collections.abc import Mapping
from pathlib import Path

from textmill_router.chat.template import DEFAULT_NAME, ChatTemplates
from textmill_router.text.added_tokens import named_tokens
from textmill_router.text.tokenizer_files import CONFIG_NAME, SPECIAL_MAP_NAME, TokenizerError, read_json_object

FURTHER_TEMPLATES = "additional_chat_templates"


def load_chat_templates(folder: Path, config_path: Path | None = None) -> ChatTemplates:
    """Return the templates of a model's folder.

    The first of these files that has a template counts: `config_path` (where the operator gives one),
    chat_template.jinja, chat_template.json, tokenizer_config.json, processor_config.json. Templates of
    `additional_chat_templates` are added to all but the first. Raises TokenizerError for a file that cannot be read.
    """
    given = {} if config_path is None else read_json_object(config_path, must_exist=True)
    sources = _named(given.get("chat_template"))
    if not sources:
        sources = _default_file(folder)
        for name in ("chat_template.json", CONFIG_NAME, "processor_config.json"):
            if not sources:
                sources = _named(read_json_object(folder / name).get("chat_template"))
        sources |= _further_files(folder)
    return ChatTemplates(sources, _special_tokens(given, folder))


def _default_file(folder: Path) -> dict[str, str]:
    path = folder / "chat_template.jinja"
    return {DEFAULT_NAME: _read_text(path)} if path.is_file() else {}


def _further_files(folder: Path) -> dict[str, str]:
    """Return the templates of `additional_chat_templates` by the names of their files."""
    return {path.stem: _read_text(path) for path in sorted((folder / FURTHER_TEMPLATES).glob("*.jinja"))}


def _named(entry: object) -> dict[str, str]:
    """Return templates by name from a string, a list of `{"name", "template"}` or an object."""
    if isinstance(entry, str):
        return {DEFAULT_NAME: entry}
    if isinstance(entry, list):
        entry = {part.get("name"): part.get("template") for part in entry if isinstance(part, dict)}
    if not isinstance(entry, dict):
        return {}
    return {name: text for name, text in entry.items() if isinstance(name, str) and isinstance(text, str)}


def _special_tokens(given: Mapping[str, object], folder: Path) -> dict[str, str]:
    """Return `bos_token` and the like, as templates name them; a config that the operator gave wins."""
    special_map = read_json_object(folder / SPECIAL_MAP_NAME)
    try:
        if given:
            return named_tokens({**special_map, **given}, {}).texts
        return named_tokens(read_json_object(folder / CONFIG_NAME), special_map).texts
    except ValueError as error:
        raise TokenizerError(f"the tokenizer files of {folder}: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
