"""Watches which layers a forward pass calls with which tensors, and so shows which layers share one input."""

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn


class CallObserver:
    """Within `with`, notes the input of each call of a layer without parts, and keeps these tensors until `forget`."""

    def __init__(self, model: nn.Module) -> None:
        self._leaves = [module for module in model.modules() if not any(True for _ in module.children())]
        self._inputs: dict[nn.Module, list[torch.Tensor | None]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [leaf.register_forward_pre_hook(self._note, with_kwargs=True) for leaf in self._leaves]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def inputs_of(self, module: nn.Module) -> list[torch.Tensor] | None:
        """Return the inputs of the calls, in order.

        None: the layer was never called, or one of the calls had other arguments than a single tensor.
        """
        noted = self._inputs.get(module, [])
        tensors = [tensor for tensor in noted if tensor is not None]
        return tensors if tensors and len(tensors) == len(noted) else None

    def called(self) -> list[nn.Module]:
        """Return the layers that were called, in the order of their first calls."""
        return list(self._inputs)

    def forget(self) -> None:
        self._inputs.clear()

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        is_single = len(arguments) == 1 and not named and torch.is_tensor(arguments[0])
        self._inputs.setdefault(module, []).append(arguments[0] if is_single else None)
