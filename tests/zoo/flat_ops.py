"""Notes the operations that a flat step must not do: reads of values on the host, and gathers of whole contexts."""

# The names are aten's, without the overload.

from collections.abc import Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Each operation needs a tensor's values on the host, for a branch or a shape. In inference mode composite operations
# come under their own names.
HOST_READS = frozenset(
    {
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
        *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "unique_dim", "_unique2", "bincount"),
    }
)
# These write the step's own K and V.
_WRITES = frozenset({"index_copy_"})
_VIEWS = frozenset({"view", "_unsafe_view", "flatten", "slice", "select", "alias", "detach", "transpose", "as_strided"})


class FlatOps(TorchDispatchMode):
    """A mode that notes forbidden operations. `pools` are the K and V tensors."""

    def __init__(self, pools: Collection[torch.Tensor]) -> None:
        super().__init__()
        self._pools = {tensor.untyped_storage().data_ptr() for tensor in pools}
        self.host_reads: list[str] = []
        self.pool_reads: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        is_boolean_index = name in ("index", "index_put_") and any(
            torch.is_tensor(index) and index.dtype is torch.bool for index in args[1] or ()
        )
        if name in HOST_READS or is_boolean_index:
            self.host_reads.append(name)
        if name not in _WRITES | _VIEWS and any(self._is_of_pool(value) for value in args):
            self.pool_reads.append(name)
        return function(*args, **(kwargs or {}))

    def _is_of_pool(self, value: Any) -> bool:
        return torch.is_tensor(value) and value.untyped_storage().data_ptr() in self._pools
