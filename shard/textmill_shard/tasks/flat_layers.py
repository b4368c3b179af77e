"""Lets the layers of a model run over tokens without padding, while embeddings and heads go on to read padded rows.

Hooks stand at the border of the layers. What enters is taken out of the padded grid, and what leaves is put back.
"""

# R rows, L tokens of the longest row, T tokens of all rows

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.flat_attention import FLAT_ATTENTION, PassRuns, attach_runs
from textmill_shard.tasks.grid import Grid


class FlatLayers:
    """The hooks of a model. `begin` comes before each forward pass."""

    def __init__(self, model: Any, *, stack: nn.ModuleList, holder: nn.Module | None) -> None:
        """`stack` holds the layers. `holder` is the module around them, if its input are the vectors of the tokens."""
        self._state = PassRuns()
        self._grid: Grid | None = None
        self._columns_T: torch.Tensor | None = None
        first, last = (holder, holder) if holder is not None else (None, stack[-1])
        entries = [first] if first is not None else list(stack)
        assert last is not None
        self._handles = [
            *(entry.register_forward_pre_hook(self._enter, with_kwargs=True) for entry in entries),
            last.register_forward_hook(self._leave),
        ]
        self._before = str(model.config._attn_implementation)
        attach_runs(model, self._state)
        model.set_attn_implementation(FLAT_ATTENTION)

    def begin(self, grid: Grid) -> None:
        """Run the next forward pass over the tokens of this grid."""
        self._state.begin(grid.runs)
        self._grid = grid
        self._columns_T = grid.places_T % grid.num_columns

    def remove(self, model: Any) -> None:
        """Take the hooks away and give the model its attention back."""
        for handle in self._handles:
            handle.remove()
        model.set_attn_implementation(self._before)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return tuple(self._take(value) for value in arguments), {
            name: self._take(value) for name, value in named.items()
        }

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        grid = self._grid
        assert grid is not None

        def put_back(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[:2] != (1, len(grid.places_T)):
                return tensor
            if grid.is_full:
                return tensor.reshape(grid.num_rows, grid.num_columns, *tensor.shape[2:])
            padded = tensor.new_zeros(grid.num_rows * grid.num_columns, *tensor.shape[2:])
            padded.index_copy_(0, grid.places_T, tensor[0])
            return padded.view(grid.num_rows, grid.num_columns, *tensor.shape[2:])

        return _map_tensors(output, put_back)

    def _take(self, value: Any) -> Any:
        grid, columns_T = self._grid, self._columns_T
        assert grid is not None
        assert columns_T is not None
        num_rows, num_columns = grid.num_rows, grid.num_columns

        def take(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() not in (2, 3) or tensor.shape[:2] not in ((num_rows, num_columns), (1, num_columns)):
                if tensor.dim() > 3:
                    raise UnsupportedModelError("its layers read more than vectors of tokens")
                return tensor
            if tensor.shape[0] == num_rows:
                flat = tensor.reshape(num_rows * num_columns, *tensor.shape[2:])
                return (flat if grid.is_full else flat.index_select(0, grid.places_T)).unsqueeze(0)
            return tensor[0].index_select(0, columns_T).unsqueeze(0)

        return _map_tensors(value, take)


def find_stack(model: nn.Module) -> tuple[nn.ModuleList, nn.Module] | None:
    """Return the outermost list of at least one layer that attends, and the module that holds the list."""
    attending = [module for module in model.modules() if hasattr(module, "is_causal") or _is_attention(module)]
    ids = {id(module) for module in attending}
    for module in model.modules():
        for child in module.children():
            is_list = isinstance(child, nn.ModuleList) and len(child) > 0
            if is_list and all(any(id(part) in ids for part in layer.modules()) for layer in child.children()):
                assert isinstance(child, nn.ModuleList)
                return child, module
    return None


def reads_vectors(holder: nn.Module, run: Callable[[], object]) -> bool:
    """Whether the first argument of the module around the layers is a tensor of vectors, in a call of `run`."""
    seen: list[bool] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = [*arguments, *named.values()]
        seen.append(
            bool(values) and torch.is_tensor(values[0]) and values[0].is_floating_point() and values[0].dim() == 3
        )

    handle = holder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return seen == [True]


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("Attention", "SelfAttention"))


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, ModelOutput):
        for name in list(value.keys()):
            value[name] = _map_tensors(value[name], change)
        return value
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(part, change) for part in value)
    if isinstance(value, Mapping):
        return {name: _map_tensors(part, change) for name, part in value.items()}
    return value
