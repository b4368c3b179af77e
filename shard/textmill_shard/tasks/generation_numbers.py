"""The numbers with which a model's files say how texts about images, and of speech, are written, and their ranges."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_shard.errors import ModelFilesError

MAX_TOKENS = 2**31 - 1
MAX_BEAMS = 64  # more than any published checkpoint asks for


@dataclass(frozen=True, slots=True)
class _Range:
    """The least and the greatest value of a number, and whether the number is whole."""

    low: float
    high: float
    is_whole: bool = False


SEARCH_RANGES: Mapping[str, _Range] = {
    "max_length": _Range(1, MAX_TOKENS, is_whole=True),
    "max_new_tokens": _Range(1, MAX_TOKENS, is_whole=True),
    "min_length": _Range(0, MAX_TOKENS, is_whole=True),
    "min_new_tokens": _Range(0, MAX_TOKENS, is_whole=True),
    "num_beams": _Range(1, MAX_BEAMS, is_whole=True),
    "num_return_sequences": _Range(1, 1, is_whole=True),  # an answer is one text
    "no_repeat_ngram_size": _Range(0, MAX_TOKENS, is_whole=True),
    "length_penalty": _Range(-100, 100),
    "repetition_penalty": _Range(1e-6, 100),
}
DRAW_RANGES: Mapping[str, _Range] = {
    "temperature": _Range(0, 100),
    "top_k": _Range(0, MAX_TOKENS, is_whole=True),
    "top_p": _Range(0, 1),
}


def check_numbers(values: Mapping[str, Any], path: Path, ranges: Mapping[str, _Range]) -> None:
    """Raise ModelFilesError for the first value of a file that generation cannot obey. A null counts as absent."""
    for name, row in ranges.items():
        value = values.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and row.low <= value <= row.high and (not row.is_whole or value == int(value)):
            continue
        what = "a whole number from " if row.is_whole else ""
        wanted = f"{row.low:g}" if row.low == row.high else f"{what}{row.low:g} to {row.high:g}"
        raise ModelFilesError(f"`{name}` of {path} must be {wanted}, found {str(value)[:32]}; correct the file")
