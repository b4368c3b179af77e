"""Copies numbers to the device without a wait of the host: the state of a slot that takes a request, or an adapter."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: npt.ArrayLike, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the numbers as a tensor on the device.

    On a GPU the copy takes its place behind the work launched so far, from pinned memory, which torch keeps until then.
    A copy from other memory would let the host wait for the steps under way.
    """
    on_host = torch.as_tensor(np.asarray(values)).to(dtype)
    return on_host if device.type == "cpu" else on_host.pin_memory().to(device, non_blocking=True)
