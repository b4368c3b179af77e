"""Reads the tensors of an adapter's folder into memory, within a bound of bytes."""

import json
import struct
from collections.abc import Mapping

import safetensors
import torch
from safetensors.torch import load as load_tensors

from textmill_shard.adapters.folder import AdapterFolder
from textmill_shard.model.adapter import AdapterRefused, AdapterTooLarge

WEIGHTS_NAME = "adapter_model.safetensors"
INDEX_NAME = "adapter_model.safetensors.index.json"
PICKLE_NAME = "adapter_model.bin"
MAX_HEADER_BYTES = 16 << 20
MAX_INDEX_BYTES = 16 << 20
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CONVERT = (
    "load the adapter with PeftModel.from_pretrained where its file can be trusted, and write it again with "
    "save_pretrained, which writes safetensors"
)


def read_tensors(folder: AdapterFolder, *, max_bytes: int) -> Mapping[str, torch.Tensor]:
    """Return the tensors by their names in the files. Raises AdapterRefused.

    The file is read and not mapped, because a mapped file that another program shortens would end this process.
    """
    if folder.has(WEIGHTS_NAME):
        return _read_file(folder, WEIGHTS_NAME, max_bytes=max_bytes)
    if folder.has(INDEX_NAME):
        tensors: dict[str, torch.Tensor] = {}
        for name in _files_of_index(folder.read(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)):
            found = _read_file(folder, name, max_bytes=max_bytes)
            twice = sorted(tensors.keys() & found.keys())
            if twice:
                raise AdapterRefused(f"{twice[0]} is in two files of {folder.path}")
            tensors.update(found)
            max_bytes -= sum(tensor.nbytes for tensor in found.values())
        return tensors
    if folder.has(PICKLE_NAME):
        raise AdapterRefused(f"{folder.path} has {PICKLE_NAME} alone, a pickle, which is never read: {_CONVERT}")
    raise AdapterRefused(f"{folder.path} has no {WEIGHTS_NAME}")


def _files_of_index(content: bytes) -> list[str]:
    try:
        weight_map = json.loads(content.decode("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterRefused(f"{INDEX_NAME} has no weight_map of tensors to files") from error
    if not all(isinstance(name, str) and name.endswith(".safetensors") for name in names):
        raise AdapterRefused(f"{INDEX_NAME} names files that are no safetensors")
    return names


def _read_file(folder: AdapterFolder, name: str, *, max_bytes: int) -> Mapping[str, torch.Tensor]:
    try:
        content = folder.read(name, max_bytes=max(max_bytes, 0))
    except AdapterTooLarge as refused:
        raise AdapterTooLarge(f"{refused} (--lora-memory-bytes)") from refused
    if len(content) < 8 or (header_bytes := struct.unpack_from("<Q", content)[0]) > len(content) - 8:
        raise AdapterRefused(f"{folder.path / name} is damaged: its header is cut off")
    if header_bytes > MAX_HEADER_BYTES:
        raise AdapterRefused(
            f"{folder.path / name} has a header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read"
        )
    try:
        return load_tensors(content)  # type: ignore[no-any-return]
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        raise AdapterRefused(f"{folder.path / name} is damaged or holds unknown types: {error}") from error
