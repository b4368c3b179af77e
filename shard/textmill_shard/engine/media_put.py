"""Takes in an image that the router puts: checks its header, and then collects the bytes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from textmill_shard.engine.media_store import MediaStore
from textmill_shard.model.media import MediaFacts

DIGEST_BYTES = 16


class MediaRefused(Exception):
    """What the router sends is no item of this model. The text says what was wanted and found."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The form of one tensor. `dtype` is torch's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The bytes of the tensor. The dtype has been checked."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return prod(self.shape) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class MediaHeader:
    """What an item is, before its bytes."""

    digest: bytes
    kind: str
    tensors: tuple[TensorHeader, ...]
    num_rows: int


class IncomingItem:
    """The bytes of one item on their way. Room for them is reserved until `finish` or `abandon`."""

    def __init__(self, header: MediaHeader, store: MediaStore) -> None:
        """Reserve the room. `check_header` has passed. Raises NoMediaRoom."""
        self._header = header
        self._store = store
        self._num_tensor_bytes = sum(tensor.num_bytes for tensor in header.tensors)
        self._num_item_bytes = store.num_item_bytes(self._num_tensor_bytes, header.num_rows)
        store.reserve(self._num_item_bytes)
        self._is_open = True
        self._data = bytearray(self._num_tensor_bytes)
        self._num_written = 0

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises MediaRefused for more bytes than the tensors have."""
        end = self._num_written + len(data)
        if end > self._num_tensor_bytes:
            raise MediaRefused(f"the tensors have {self._num_tensor_bytes} bytes, got {end} and more")
        self._data[self._num_written : end] = data
        self._num_written = end

    def finish(self) -> None:
        """Keep the item. Raises MediaRefused where bytes are missing."""
        if self._num_written < self._num_tensor_bytes:
            raise MediaRefused(f"the tensors have {self._num_tensor_bytes} bytes, got {self._num_written}")
        header = self._header
        self._is_open = False
        self._store.put(header.digest, self._cut(), num_rows=header.num_rows, num_bytes=self._num_item_bytes)

    def abandon(self) -> None:
        """Give the room back unless `finish` has kept the item."""
        if self._is_open:
            self._is_open = False
            self._store.give_back(self._num_item_bytes)

    def _cut(self) -> Mapping[str, torch.Tensor]:
        tensors = {}
        start = 0
        for tensor in self._header.tensors:
            dtype = getattr(torch, tensor.dtype)
            size = prod(tensor.shape)
            values = torch.frombuffer(self._data, dtype=dtype, count=size, offset=start)
            # A tensor may begin at any byte, and kernels want elements at multiples of their size.
            is_aligned = start % dtype.itemsize == 0
            tensors[tensor.name] = (values if is_aligned else values.clone()).view(tensor.shape)
            start += tensor.num_bytes
        return tensors


def check_header(header: MediaHeader, facts: MediaFacts, *, max_bytes: int) -> None:
    """Raise MediaRefused unless the header describes an item of the model that takes at most `max_bytes`.

    Nothing is made room for before this check.
    """
    _require(len(header.digest) == DIGEST_BYTES, f"a digest has {DIGEST_BYTES} bytes, got {len(header.digest)}")
    _require(header.kind in facts.kinds, f"kinds of items are {', '.join(facts.kinds)}, got {header.kind!r}")
    names = [tensor.name for tensor in header.tensors]
    rules = facts.tensor_names
    missing = [name for name, rule in rules.items() if rule.is_required and name not in names]
    _require(not missing, f"the tensor {missing[:1]} is missing, the tower takes {list(rules)}")
    _require(len(set(names)) == len(names), f"a tensor comes twice among {names}")
    for tensor in header.tensors:
        rule = rules.get(tensor.name)
        _require(rule is not None, f"the tower takes {list(rules)}, got the tensor {tensor.name!r}")
        assert rule is not None
        is_dtype = tensor.dtype in rule.dtypes
        _require(is_dtype, f"{tensor.name} is of {' or '.join(rule.dtypes)}, got {tensor.dtype!r}")
        has_dims = len(tensor.shape) == rule.num_dims
        _require(has_dims, f"{tensor.name} has {rule.num_dims} dimensions, got the shape {tensor.shape}")
        _require(all(tensor.shape), f"{tensor.name} has elements, got the shape {tensor.shape}")
    _require(header.num_rows > 0, "an item has at least one row, got 0")
    num_bytes = max(sum(tensor.num_bytes for tensor in header.tensors), header.num_rows * facts.row_bytes)
    _require(num_bytes <= max_bytes, f"an item takes at most {max_bytes} bytes, got {num_bytes} (--media-cache-bytes)")


def _require(is_right: bool, message: str) -> None:
    if not is_right:
        raise MediaRefused(message)
