"""From arrays of a processor to the bytes that a shard takes: pixels in the model's dtype, masks as truth values."""

import numpy as np
from numpy.typing import NDArray

from textmill_router.media.media_item import TensorPart

Array = NDArray[np.generic]


def tensor_part(name: str, array: Array, dtype: str) -> TensorPart:
    """Return the tensor of an array; `dtype` is that of numbers with a fraction."""
    if np.issubdtype(array.dtype, np.floating):
        return TensorPart(name, dtype, array.shape, _float_bytes(array.astype(np.float32, copy=False), dtype))
    if name.endswith("_mask"):
        return TensorPart(name, "bool", array.shape, np.ascontiguousarray(array, dtype=np.bool_).tobytes())
    return TensorPart(name, "int64", array.shape, np.ascontiguousarray(array, dtype="<i8").tobytes())


def _float_bytes(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "bfloat16":
        # The upper half of a float32, rounded to the nearest, and to the even one of two as near.
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        rounded = bits + (0x7FFF + ((bits >> 16) & 1))
        upper: bytes = (rounded >> 16).astype("<u2").tobytes()
        return upper
    return np.ascontiguousarray(values, dtype={"float16": "<f2", "float32": "<f4"}[dtype]).tobytes()
