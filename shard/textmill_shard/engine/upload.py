"""Brings the arrays of a step to the device: on a GPU through one pinned buffer and in one copy.

On a CPU the tensors share the memory of the arrays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT_BYTES = 16  # kernels read faster from pointers that are multiples of this
HostArray = npt.NDArray[Any]


class Upload:
    """Collects the arrays of one step by `add`, copies them by `send`, and then gives their tensors by number."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[HostArray] = []
        self._tensors: list[torch.Tensor] = []

    def add(self, values: HostArray) -> int:
        """Take an array along, and return its number. The array must not change before the step is computed."""
        assert not self._tensors, "the arrays have been sent"
        self._arrays.append(values)
        return len(self._arrays) - 1

    def send(self) -> None:
        """Start the copy. The caller does not wait for its end."""
        if self._device.type == "cpu":
            self._tensors = [torch.from_numpy(values) for values in self._arrays]
            return
        if not self._arrays:
            return
        sent = self._on_host(pack_arrays(self._arrays)).to(self._device, non_blocking=True)
        self._tensors = unpack_tensors(sent, self._arrays)

    def send_behind(self, first: HostArray, memory: torch.Tensor) -> None:
        """Start one copy of an array to the beginning of `memory` (uint8), with the collected arrays behind it.

        `memory` changes with the next such copy, and the collected arrays may be needed longer, so that their tensors
        have memory of their own. Arrays for which `memory` has no room are copied by themselves.
        """
        packed = pack_arrays([first, *self._arrays])
        if len(packed) > len(memory):
            packed = pack_arrays([first])
            memory[: len(packed)].copy_(self._on_host(packed), non_blocking=True)
            self.send()
            return
        memory[: len(packed)].copy_(self._on_host(packed), non_blocking=True)
        if self._arrays:
            behind = memory[len(packed) - _starts([values.nbytes for values in self._arrays])[-1] : len(packed)].clone()
            self._tensors = unpack_tensors(behind, self._arrays)

    def _on_host(self, packed: HostArray) -> torch.Tensor:
        """Return the bytes as a tensor from which the device can copy. torch keeps pinned memory until a copy ends."""
        tensor = torch.from_numpy(packed)
        return tensor if self._device.type == "cpu" else tensor.pin_memory()

    def tensor(self, number: int) -> torch.Tensor:
        """Return the tensor on the device of the array with this number."""
        return self._tensors[number]


def to_host(*tensors: torch.Tensor) -> list[HostArray]:
    """Return the values of tensors of one device, for which the host waits. From a GPU they come in one copy."""
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    return unpack_arrays(pack_tensors(tensors).cpu().numpy(), tensors)


def pack_arrays(arrays: Sequence[HostArray]) -> npt.NDArray[np.uint8]:
    """Return the bytes of the arrays, each from an aligned place on."""
    starts = _starts([values.nbytes for values in arrays])
    packed = np.zeros(starts[-1], dtype=np.uint8)
    for start, values in zip(starts, arrays, strict=False):
        packed[start : start + values.nbytes].view(values.dtype).reshape(values.shape)[...] = values
    return packed


def unpack_tensors(packed: torch.Tensor, arrays: Sequence[HostArray]) -> list[torch.Tensor]:
    """Return a tensor for each array of `pack_arrays`, as views of the bytes."""
    tensors = []
    for start, values in zip(_starts([values.nbytes for values in arrays]), arrays, strict=False):
        dtype = torch.from_numpy(np.empty(0, dtype=values.dtype)).dtype
        tensors.append(packed.narrow(0, start, values.nbytes).view(dtype).view(values.shape))
    return tensors


def pack_tensors(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the bytes of the tensors, one behind the other."""
    return torch.cat([tensor.contiguous().view(torch.uint8).flatten() for tensor in tensors])


def unpack_arrays(packed: npt.NDArray[np.uint8], tensors: Sequence[torch.Tensor]) -> list[HostArray]:
    """Return an array for each tensor of `pack_tensors`."""
    arrays: list[HostArray] = []
    start = 0
    for tensor in tensors:
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        values = packed[start : start + tensor.nbytes].copy()  # the bytes of a tensor may begin at any place
        arrays.append(values.view(dtype).reshape(tuple(tensor.shape)))
        start += tensor.nbytes
    return arrays


def _starts(sizes_bytes: Sequence[int]) -> list[int]:
    """Return where each array begins, and at last where the bytes end."""
    starts = [0]
    for size in sizes_bytes:
        starts.append(starts[-1] + -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    return starts
