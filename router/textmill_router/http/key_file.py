"""The file of API keys (`--api-key-file`), which SECURITY.md describes."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

from textmill_router.http.api_keys import ApiKeyEntry, digest_of

MIN_PRIORITY, MAX_PRIORITY = -10, 10
MIN_WEIGHT, MAX_WEIGHT = 0.01, 1000.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_FIELDS = ("name", "key", "sha256", "weight", "min_priority")


class KeyFileError(Exception):
    """The file cannot be used. The message names the entry and never shows a key."""


def read_key_file(path: Path) -> list[ApiKeyEntry]:
    """Return the keys of a file, at least one. Raises KeyFileError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # The parser's message ends with the place, and may show characters of the file before.
        place = re.search(r"\(at (.*)\)$", str(error))
        raise KeyFileError(f"{path} is not TOML, at {place[1] if place else 'an unknown place'}") from None
    if content.keys() - {"key"}:
        raise KeyFileError(f"{path} has further fields at its top, wanted [[key]] alone")
    tables = content.get("key")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise KeyFileError(f"{path} has no [[key]], wanted at least one")
    return [_entry(table, f"[[key]] {number} of {path}") for number, table in enumerate(tables, 1)]


def _entry(table: dict[str, Any], where: str) -> ApiKeyEntry:
    # No name and no value of the file is shown but `name`, because a key may stand where it does not belong.
    if table.keys() - set(_FIELDS):
        raise KeyFileError(f"{where} has a field that is none of {', '.join(_FIELDS)}")
    name, weight, priority = table.get("name"), table.get("weight", 1.0), table.get("min_priority", 0)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KeyFileError(f"{where}: `name` must be 1 to 64 of a-z, A-Z, 0-9 and _ . @ -, a letter or digit first")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
    if not is_number or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise KeyFileError(f"{where}: `weight` of {name} must be a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
    is_whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not is_whole or not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        wanted = f"a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}"
        raise KeyFileError(f"{where}: `min_priority` of {name} must be {wanted}")
    return ApiKeyEntry(name, _sha256(table, f"{where}: {name}"), float(weight), priority)


def _sha256(table: dict[str, Any], where: str) -> bytes:
    key, digest = table.get("key"), table.get("sha256")
    if (key is None) == (digest is None):
        raise KeyFileError(f"{where} must have either `key` or `sha256`")
    if key is None:
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise KeyFileError(f"{where}: `sha256` must be the 64 hexadecimal digits of the key's SHA-256 digest")
        return bytes.fromhex(digest)
    if not isinstance(key, str) or not is_usable_key(key):
        raise KeyFileError(f"{where}: `key` must be printable ASCII without a space at its ends")
    return digest_of(key.encode())


def is_usable_key(key: str) -> bool:
    """Whether a client can show the key in a header."""
    return bool(key) and key == key.strip() and all(" " <= character <= "~" for character in key)
