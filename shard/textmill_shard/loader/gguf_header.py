"""Reads the header of a GGUF file: its values by key, and which tensor lies where.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3 in little endian.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from textmill_shard.errors import ModelFilesError

GGUF_MAGIC = b"GGUF"

Value: TypeAlias = int | float | bool | str | list[Any]

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Letters of struct by type number of the format.
_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEFAULT_ALIGNMENT = 32  # bytes


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file. `shape` is in torch's order, the format's reversed."""

    name: str
    shape: tuple[int, ...]
    kind: int  # number of the format's type
    offset: int  # bytes from the start of the tensors' data
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata and the tensor list of a file."""

    path: Path
    values: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]
    values_start: int  # bytes from the start of the file
    values_end: int
    data_start: int
    alignment: int  # bytes

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    def of_model(self) -> dict[str, Value]:
        """Give the values that describe the model, by key without the architecture's name before it."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}


def read_header(path: Path) -> GgufHeader:
    """Raises ModelFilesError where the file is no GGUF file, is damaged, or is shorter than its header says."""
    if not path.is_file():
        raise ModelFilesError(f"{path} is not a file")
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != GGUF_MAGIC:
            raise ModelFilesError(f"{path} is no GGUF file")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                header = _Reader(path, content).read()
            except (struct.error, IndexError, KeyError, ValueError, OverflowError, MemoryError) as error:
                raise ModelFilesError(
                    f"{path} has a broken header ({type(error).__name__}: {error}): an interrupted download or copy "
                    "leaves such files, fetch it again"
                ) from error
    wanted = header.data_start + max((tensor.offset + tensor.size for tensor in header.tensors), default=0)
    if size < wanted:
        raise ModelFilesError(
            f"{path} is cut short: it has {size} bytes, its header asks for {wanted}; an interrupted download or copy "
            "leaves such files, fetch it again"
        )
    return header


class _Reader:
    """Walks through the bytes of one header."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._at = 4

    def read(self) -> GgufHeader:
        version, num_tensors, num_values = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise ModelFilesError(
                f"{self._path} is a GGUF file of version {version}, versions 2 and 3 in little endian can be read: "
                "convert the model again with a current llama.cpp"
            )
        values_start = self._at
        values: dict[str, Value] = {}
        for _ in range(num_values):
            key = self._text()
            values[key] = self._value(self._numbers("I")[0])
        values_end = self._at
        tensors = tuple(self._tensor() for _ in range(num_tensors))
        alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ModelFilesError(f"{self._path} has {alignment!r} as general.alignment")
        if not isinstance(values.get("general.architecture"), str):
            raise ModelFilesError(f"{self._path} has no general.architecture that says what kind of model it holds")
        return GgufHeader(
            path=self._path,
            values=values,
            tensors=tensors,
            values_start=values_start,
            values_end=values_end,
            data_start=-(-self._at // alignment) * alignment,
            alignment=alignment,
        )

    def _numbers(self, letters: str) -> tuple[int, ...]:
        form = f"<{letters}"
        numbers = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return numbers

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        end = self._at + length
        if end > len(self._content):
            raise ValueError(f"a text of {length} bytes ends behind the file")
        text = self._content[self._at : end].decode("utf-8")
        self._at = end
        return text

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            value: Value = self._numbers(_LETTERS[kind])[0]
            return value
        element, count = self._numbers("IQ")
        if element in _LETTERS:
            return list(self._numbers(f"{count}{_LETTERS[element]}"))
        if element not in (_STRING, _ARRAY):
            raise KeyError(element)
        return [self._value(element) for _ in range(count)]

    def _tensor(self) -> TensorEntry:
        name = self._text()
        (num_dims,) = self._numbers("I")
        shape = tuple(reversed(self._numbers(f"{num_dims}Q")))
        kind, offset = self._numbers("IQ")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise ModelFilesError(
                f"{self._path} holds {name} in the form {kind}, which the installed gguf package does not know"
            ) from error
        return TensorEntry(name, shape, kind, offset, math.prod(shape) // block * block_bytes)
