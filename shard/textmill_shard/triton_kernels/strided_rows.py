"""Where the rows of a tensor lie in memory. The kernels read rows whose numbers are neighbours."""

from dataclasses import dataclass

import torch


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with neighbours of the last dim side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor: row n lies at n // num_inner outer strides and n % num_inner inner strides."""

    tensor: torch.Tensor
    num_inner: int
    outer_stride: int
    inner_stride: int


def two_strides(x: torch.Tensor) -> Rows:
    """Return the rows of `[..., I]` where two strides tell where they lie, else those of a copy."""
    dims = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    merged: list[tuple[int, int]] = []
    for size, stride in dims:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = merged[-1][0] * size, stride
        else:
            merged.append((size, stride))
    if x.stride(-1) != 1 or len(merged) > 2:
        return Rows(x.contiguous(), num_inner=1, outer_stride=x.shape[-1], inner_stride=0)
    if len(merged) < 2:
        return Rows(x, num_inner=1, outer_stride=merged[0][1] if merged else 0, inner_stride=0)
    return Rows(x, num_inner=merged[1][0], outer_stride=merged[0][1], inner_stride=merged[1][1])
