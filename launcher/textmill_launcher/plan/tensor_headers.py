"""Reads names, types and shapes of a model's tensors: from the headers of safetensors files, without the weights."""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from textmill_launcher.errors import ModelFilesError

MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
_STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The type of a tensor, in safetensors' words, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    def loaded_bytes(self, element_bytes: int) -> int:
        """Return the bytes that the tensor takes once loaded: numbers with a point have the model's type.

        FP8 weights become plain, as do the pairs of 4 bits that MXFP4 keeps in a byte; their scales are used up.
        """
        if self.name.endswith(("_scales", ".weight_scale", ".weight_scale_inv", ".input_scale")):
            return 0
        if self.name.endswith("_blocks") and self.dtype == "U8":
            return 2 * self.num_elements * element_bytes
        if self.dtype.startswith(("F", "BF")):
            return self.num_elements * element_bytes
        return self.num_elements * _STORED_BYTES.get(self.dtype, 1)


def read_local_headers(folder: Path) -> list[TensorHeader]:
    """Return the headers of all tensors of a folder. Raises `ModelFilesError` for files that are cut or no safetensors.

    Where there is an index, the files that it names are read, and else all files of the folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names: Iterable[str] = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFilesError(f"{index} is no index of safetensors files: {error!r}") from None
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ModelFilesError(f"{folder} lacks {', '.join(missing) or '*.safetensors'}")
    return [header for file in files for header in read_header(file)]


def read_header(file: Path) -> list[TensorHeader]:
    """Return the headers of one file. Raises `ModelFilesError` where the file is damaged, or shorter than it says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else MAX_HEADER_BYTES
        if 8 + length > min(size, MAX_HEADER_BYTES):
            raise ModelFilesError(f"{file} is no safetensors file: its header would take {length} of {size} bytes")
        entries = parse_header(stream.read(length), str(file))
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    wanted = 8 + length + max(ends, default=0)
    if wanted != size:
        raise ModelFilesError(f"{file} has {size} bytes, its header speaks of {wanted}: the file is damaged or cut off")
    return headers_of(entries)


def parse_header(text: bytes, name: str) -> dict[str, Any]:
    """Return the JSON of a header. Raises `ModelFilesError`."""
    try:
        entries = json.loads(text)
        for key, entry in entries.items():
            if key != "__metadata__":
                assert len(entry["data_offsets"]) == 2
                assert isinstance(entry["dtype"], str)
                assert isinstance(entry["shape"], list)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise ModelFilesError(f"{name} is no safetensors file: its header cannot be read") from None
    return dict(entries)


def headers_of(entries: Mapping[str, Any]) -> list[TensorHeader]:
    """Return the tensors of a parsed header."""
    return [
        TensorHeader(name, entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    ]
