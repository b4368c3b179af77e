"""Model in several GGUF files: finds the parts beside each other and joins them into one file.

Names and keys are those of llama.cpp's gguf-split: `NAME-00001-of-00003.gguf`, with `split.no`, `split.count` and
`split.tensors.count` in each part, and the values of the model in the first part.
"""

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_header import GGUF_MAGIC, GgufHeader, TensorEntry, read_header

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

_COPY_BYTES = 1 << 24


def read_parts(gguf_file: Path) -> tuple[GgufHeader, ...]:
    """Give the headers of all files of the model that one of its files belongs to, the first part first.

    Raises ModelFilesError where a part is missing or does not fit the others.
    """
    header = read_header(gguf_file)
    count = header.values.get("split.count", 0)
    named = _PART_NAME.fullmatch(gguf_file.name)
    if not isinstance(count, int) or count <= 1:
        if named is not None and int(named["count"]) > 1:
            raise ModelFilesError(
                f"{gguf_file} is named as a part of a model in {int(named['count'])} files, and has no split.count "
                "that says so: give it another name if it is whole"
            )
        return (header,)
    if named is None:
        raise ModelFilesError(
            f"{gguf_file} is one of {count} files of a model (split.count): call them NAME-00001-of-{count:05}.gguf "
            "and so on, as llama.cpp does, and keep them in one folder"
        )
    names = [f"{named['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    absent = [name for name in names if not (gguf_file.parent / name).is_file()]
    if absent:
        raise ModelFilesError(
            f"{gguf_file} is one of the {count} files of a model, and {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not beside it"
        )
    parts = tuple(read_header(gguf_file.parent / name) for name in names)
    _check_fit(parts)
    return parts


def _check_fit(parts: Sequence[GgufHeader]) -> None:
    for number, part in enumerate(parts):
        if (part.values.get("split.no"), part.values.get("split.count")) != (number, len(parts)):
            raise ModelFilesError(f"{part.path} is not part {number + 1} of {len(parts)} (split.no, split.count)")
    names = [tensor.name for part in parts for tensor in part.tensors]
    wanted = parts[0].values.get("split.tensors.count")
    if wanted is not None and wanted != len(names):
        raise ModelFilesError(
            f"{parts[0].path} and its {len(parts) - 1} other parts hold {len(names)} tensors, {wanted} are wanted: the "
            "files are of different models"
        )
    if len(set(names)) != len(names):
        raise ModelFilesError(f"{parts[0].path} and its other parts hold the same tensor twice")


def join_parts(parts: Sequence[GgufHeader], target: Path) -> None:
    """Write one file with the values of the first part and the tensors of all."""
    first = parts[0]
    with first.path.open("rb") as stream:
        stream.seek(first.values_start)
        values = stream.read(first.values_end - first.values_start)
    tensors: list[tuple[GgufHeader, TensorEntry]] = [(part, tensor) for part in parts for tensor in part.tensors]
    entries, end = [], 0
    for _, tensor in tensors:
        entries.append(_entry(tensor, offset=end))
        end = _aligned(end + tensor.size, first.alignment)
    head = GGUF_MAGIC + struct.pack("<IQQ", 3, len(tensors), len(first.values)) + values + b"".join(entries)
    with target.open("wb") as written:
        written.write(head.ljust(_aligned(len(head), first.alignment), b"\0"))
        for part, tensor in tensors:
            with part.path.open("rb") as stream:
                stream.seek(part.data_start + tensor.offset)
                _copy(stream, written, tensor.size)
            written.write(b"\0" * (_aligned(tensor.size, first.alignment) - tensor.size))


def _copy(stream: BinaryIO, written: BinaryIO, size: int) -> None:
    while size > 0:
        block = stream.read(min(size, _COPY_BYTES))
        assert block, "a part became shorter while it was read"
        written.write(block)
        size -= len(block)


def _entry(tensor: TensorEntry, *, offset: int) -> bytes:
    name = tensor.name.encode()
    dims = tensor.shape[::-1]
    return struct.pack(f"<Q{len(name)}sI{len(dims)}QIQ", len(name), name, len(dims), *dims, tensor.kind, offset)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
