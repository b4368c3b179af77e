"""Reads text values from a GGUF header. The gguf package reads every array, which takes seconds per file."""

import struct
from pathlib import Path
from typing import BinaryIO

from textmill_shard.errors import ModelFilesError

GGUF_MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
# Bytes per value, by type number of the format.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def read_text_values(gguf_file: Path, prefix: str) -> dict[str, str]:
    """Return the text values whose keys begin with `prefix`, by key. Raises ModelFilesError for a broken header."""
    values = {}
    with gguf_file.open("rb") as stream:
        if stream.read(4) != GGUF_MAGIC:
            raise ModelFilesError(f"{gguf_file} is no GGUF file")
        try:
            _version, _num_tensors, num_values = struct.unpack("<IQQ", stream.read(20))
            for _ in range(num_values):
                name = _read_text(stream)
                (kind,) = struct.unpack("<I", stream.read(4))
                if kind == _STRING and name.startswith(prefix):
                    values[name] = _read_text(stream)
                else:
                    _skip(stream, kind)
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelFilesError(f"{gguf_file} has a broken header: {error}") from error
    return values


def _read_text(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    return stream.read(length).decode("utf-8")


def _skip(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        (length,) = struct.unpack("<Q", stream.read(8))
        stream.seek(length, 1)
    elif kind == _ARRAY:
        element, count = struct.unpack("<IQ", stream.read(12))
        if element in _SIZES:
            stream.seek(_SIZES[element] * count, 1)
            return
        for _ in range(count):
            _skip(stream, element)
    else:
        stream.seek(_SIZES[kind], 1)
