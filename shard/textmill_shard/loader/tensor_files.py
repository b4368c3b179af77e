"""Opens files of weights: safetensors, and pickles by a reader of torch that runs no code of the file."""

import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from textmill_shard.errors import ModelFilesError

SAFETENSORS_SUFFIX = ".safetensors"
# Exceptions, besides its own, of torch's reader of pickles at a file that was cut short or changed.
_DAMAGES = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    struct.error,
)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file with the methods of `safe_open`: `keys()`, `get_tensor(name)`, `get_slice(name)[...]`.

    Raises ModelFilesError.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        with _open_safetensors(path) as opened:
            yield opened
    else:
        yield _PickledTensors(path, _read_pickle(path))


def names_of_tensors(path: Path) -> tuple[str, ...]:
    """Return the names of the tensors. Their bytes are not read if the format allows that."""
    with open_tensors(path) as opened:
        return tuple(opened.keys())


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelFilesError(
            f"{path} cannot be read as safetensors ({error}): its size is {path.stat().st_size} bytes; an interrupted "
            "download or copy leaves such files, fetch it again"
        ) from error


class _PickledTensors:
    """The tensors of a pickle, with the methods of an open safetensors file."""

    def __init__(self, path: Path, tensor_of_name: Mapping[str, torch.Tensor]) -> None:
        self._path = path
        self._tensor_of_name = tensor_of_name

    def keys(self) -> list[str]:
        return list(self._tensor_of_name)

    def get_tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensor_of_name:
            raise ModelFilesError(f"{self._path} holds no {name}, of which the index says that it is there")
        return self._tensor_of_name[name]

    def get_slice(self, name: str) -> torch.Tensor:
        return self.get_tensor(name)


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors by name. A zip archive, as torch has written since 2020, is mapped into memory."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        content = torch.load(path, mmap=_is_zip(path), **options)
    except pickle.UnpicklingError as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelFilesError(
            f"{path} holds more than tensors, or is damaged, and is refused: what it asks for would run code "
            f"({first_line})"
        ) from error
    except _DAMAGES as error:
        raise ModelFilesError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    is_flat = isinstance(content, dict) and all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()
    )
    if not is_flat:
        raise ModelFilesError(f"{path} is not a plain list of named tensors: save the model's state_dict() there")
    tensors: dict[str, torch.Tensor] = content
    return tensors


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
