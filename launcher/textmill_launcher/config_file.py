"""Reads a file of settings in TOML, whose keys are the names of the flags."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from textmill_launcher.errors import SettingsError
from textmill_launcher.flag_parser import Given, nearest
from textmill_launcher.options import Option


def read_config_file(path: Path, options: Sequence[Option]) -> Mapping[str, list[Given]]:
    """Return the values of the file by the names of the options.

    A key is a flag without its dashes, as `max-input-tokens` or `max_input_tokens`. Raises `SettingsError` for a file
    that cannot be read or is no TOML, for an unknown key, and for a value that is a table or a date.
    """
    import tomllib  # here, because the import takes 10 ms and few starts have a file

    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config {path} is no TOML: {error}") from None
    by_key = {name.lower(): option for option in options for name in _keys_of(option)}
    found: dict[str, list[Given]] = {}
    for key, value in entries.items():
        option = by_key.get(key.replace("-", "_"))
        if option is None:
            near = nearest(key.replace("-", "_"), by_key)
            hint = "" if near is None else f": did you mean {near}?"
            raise SettingsError(f"--config {path} has the key {key}, which is no flag{hint}")
        where = f"{key} in {path}"
        if isinstance(value, list) and not option.is_repeatable:
            raise SettingsError(f"{where} is a list, wanted one value: {option.accepted}")
        found.setdefault(option.name, []).extend(Given(where, text) for text in _texts(where, value))
    return found


def _keys_of(option: Option) -> tuple[str, ...]:
    flags = tuple(flag.lstrip("-").replace("-", "_") for flag in (option.flag, *option.aliases))
    return flags if option.has_flag or option.has_variable else ()


def _texts(where: str, value: object) -> list[str]:
    """Return a value of TOML as the texts that flags would have."""
    match value:
        case bool():
            return ["true" if value else "false"]
        case int() | float() | str():
            return [str(value)]
        case list():
            return [text for item in value for text in _texts(where, item)]
        case dict():
            raise SettingsError(f"{where} is a table: keys stand at the top of the file, without [headings]")
        case _:
            raise SettingsError(f"{where} is {value!r}, wanted a text, a number, true, false or a list of these")
