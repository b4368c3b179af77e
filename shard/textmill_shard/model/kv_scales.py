"""Keys and values in 8 bits: the types, and the scale of each head, by which a stored number is multiplied.

A measured scale is a power of two, so that it moves the exponent of a number and rounds nothing; a checkpoint may bring
other scales (`loader/stored_kv_scales.py`). A number in 8 bits keeps its
relative error over many powers of two, so that a scale need not follow the numbers closely: `measure_scales` leaves
room for numbers `ROOM` times as large as those of the trial text, and larger ones become the largest number there is.
"""

# K local key/value heads, D key or value width

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

KV_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
)
ROOM = 8.0


@dataclass(frozen=True, slots=True)
class KvScales:
    """The scales of one layer, float32 `[K]` each."""

    keys_K: torch.Tensor
    values_K: torch.Tensor


def is_scaled(dtype: torch.dtype) -> bool:
    """Whether keys and values of this type are stored with scales."""
    return dtype in KV_TYPES.values()


def largest_number(dtype: torch.dtype) -> float:
    """Return the largest finite number of a type."""
    return torch.finfo(dtype).max


def store(numbers: torch.Tensor, scales_K: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `[..., K, D]` in 8 bits. Too large numbers become the largest number, and NaN stays NaN."""
    largest = largest_number(dtype)
    return (numbers.float() / scales_K.unsqueeze(-1)).clamp(-largest, largest).to(dtype)


def restore(stored: torch.Tensor, scales_K: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return numbers `[..., K, D]` of a type with more bits, of numbers in 8 bits."""
    return (stored.float() * scales_K.unsqueeze(-1)).to(dtype)


def measure_scales(
    keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], dtype: torch.dtype
) -> tuple[KvScales, ...]:
    """Return the scales of each layer for the numbers of a trial text, `[..., K, D]` in the model's type."""
    largest = largest_number(dtype) / ROOM
    return tuple(
        KvScales(_scales(key, largest), _scales(value, largest)) for key, value in zip(keys, values, strict=True)
    )


def is_cut(key: torch.Tensor, value: torch.Tensor, scales: KvScales, dtype: torch.dtype) -> bool:
    """Whether some of the numbers, `[..., K, D]`, are larger than the largest number of the type times its scale."""
    largest = largest_number(dtype)
    pairs = ((key, scales.keys_K), (value, scales.values_K))
    return any(bool((numbers.float().abs() > largest * of_K.unsqueeze(-1)).any()) for numbers, of_K in pairs)


def _scales(numbers: torch.Tensor, largest: float) -> torch.Tensor:
    """Return the least powers of two, `[K]`, by which the numbers of each head may be divided to be below `largest`."""
    peaks_K = numbers.float().abs().flatten(0, -3).amax(dim=(0, 2))
    # A head whose numbers are all 0, or no numbers, has no size.
    has_size_K = (peaks_K > 0) & peaks_K.isfinite()
    peaks_K = torch.where(has_size_K, peaks_K, largest)
    return torch.exp2(torch.ceil(torch.log2(peaks_K / largest)))
