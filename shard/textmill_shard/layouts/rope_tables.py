"""Rotary tables that must not depend on the neighbours of a token.

transformers picks "longrope" and "dynamic" tables by the longest position of a forward pass, so that in a flat batch
one long request would change the positions of a short one. Here the longrope table is chosen per token, by the side of
the border on which the token's request was admitted, and dynamic tables are fixed when the model is loaded.
"""

# T tokens of the step

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from textmill_shard.attention.seam import StepContext
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.device_constants import PhimoeTables

_LONG, _DYNAMIC, _DEFAULT = "longrope", "dynamic", "default"


def find_rope_border(config: Any) -> int | None:
    """Return the number of tokens (prompt and output) above which a request takes the long table.

    None: the model has one table. Raises UnsupportedModelError for tables with several borders.
    """
    borders = {int(kind["original_max_position_embeddings"]) for kind in _kinds(config) if _type_of(kind) == _LONG}
    if len(borders) > 1:
        raise UnsupportedModelError(f"rotary tables with several borders ({sorted(borders)}) cannot be served")
    return borders.pop() if borders else None


def longest_dynamic_total(config: Any) -> int | None:
    """Return the number of tokens to which dynamic tables can be stretched. None: the model has no such table."""
    factors = [float(kind.get("factor") or 1.0) for kind in _kinds(config) if _type_of(kind) == _DYNAMIC]
    return int(config.get_text_config().max_position_embeddings * max(factors)) if factors else None


def fix_dynamic_tables(model: nn.Module, *, max_tokens: int) -> None:
    """Set in each dynamic rotary module the table of the longest text, for texts of all lengths."""
    for module in _rotary_modules(model, _DYNAMIC):
        if not isinstance(module.rope_type, str):
            raise UnsupportedModelError("dynamic rotary tables that differ by layer cannot be served")
        frequencies, scaling = ROPE_INIT_FUNCTIONS[_DYNAMIC](module.config, None, seq_len=max_tokens)
        module.inv_freq = frequencies.to(module.inv_freq.device)
        module.attention_scaling = scaling
        module.rope_type = _DEFAULT  # transformers does not compute a default table again


def choose_long_tables_by_token(model: nn.Module, context: StepContext, *, border: int) -> None:
    """Let each token take the table of its request (`is_long_rope_T` of the step)."""
    modules = _rotary_modules(model, _LONG)
    if not modules:
        raise UnsupportedModelError("the config names longrope positions, but the model has no such rotary layer")
    for module in modules:
        if isinstance(module.forward, PhimoeTables):
            continue  # which chooses by token
        module.forward = _TableByToken(module, context, border)


class _TableByToken:
    """Calls the rotary layer with the short and with the long frequencies, and takes each token's own table.

    The layer's own choice is switched off, because some versions of transformers read the longest position on the host.
    """

    def __init__(self, module: Any, context: StepContext, border: int) -> None:
        self._module = module
        self._forward = module.forward
        self._context = context
        self._border = border
        types = module.rope_type
        layers = [layer for layer, kind in types.items() if kind == _LONG] if isinstance(types, Mapping) else [None]
        self._frequencies = {layer: self._frequencies_of(layer) for layer in layers}
        # transformers does not choose between the frequencies of a default table.
        module.rope_type = {**types, **dict.fromkeys(layers, _DEFAULT)} if isinstance(types, Mapping) else _DEFAULT

    def __call__(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None, **kwargs: Any
    ) -> Any:
        if layer_type is not None:
            kwargs["layer_type"] = layer_type
        if layer_type not in self._frequencies:
            return self._forward(x, position_ids, **kwargs)
        frequencies = self._frequencies[layer_type]
        is_long_T = self._context.is_long_rope_T
        if is_long_T is None:  # one text alone, at load, when the host may wait
            is_long = bool(position_ids.max() >= self._border)
            return self._table(frequencies.long if is_long else frequencies.short, x, position_ids, kwargs)
        short, long = (self._table(table, x, position_ids, kwargs) for table in (frequencies.short, frequencies.long))
        if torch.is_tensor(short):
            return _choose(is_long_T, long, short)
        return tuple(_choose(is_long_T, *pair) for pair in zip(long, short, strict=True))

    def _table(self, frequencies: torch.Tensor, x: torch.Tensor, positions: torch.Tensor, named: dict[str, Any]) -> Any:
        setattr(self._module, _buffer_of(named.get("layer_type")), frequencies)
        return self._forward(x, positions, **named)

    def _frequencies_of(self, layer: str | None) -> "_Frequencies":
        """Return the frequencies that the layer takes for a short and for a long text."""
        name = _buffer_of(layer)
        named = {} if layer is None else {"layer_type": layer}
        device = getattr(self._module, name).device
        found = []
        for position in (0, self._border):
            self._forward(torch.zeros(1, device=device), torch.tensor([[position]], device=device), **named)
            found.append(getattr(self._module, name).clone())
        return _Frequencies(*found)


@dataclass(frozen=True, slots=True)
class _Frequencies:
    """The two sets of a longrope table, each of half of the rotary width."""

    short: torch.Tensor
    long: torch.Tensor


def _buffer_of(layer: str | None) -> str:
    """Return the name under which a rotary layer keeps its frequencies."""
    return "inv_freq" if layer is None else f"{layer}_inv_freq"


def _choose(is_long_T: torch.Tensor, long: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
    """Return a table `[1, T, width]`."""
    return torch.where(is_long_T[None, :, None], long, short)


def _rotary_modules(model: nn.Module, kind: str) -> list[Any]:
    found = []
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        types = rope_type.values() if isinstance(rope_type, Mapping) else (rope_type,)
        if kind in types:
            found.append(module)
    return found


def _kinds(config: Any) -> list[Mapping[str, Any]]:
    """Return the sets of rotary parameters, of which models with windows may have one per kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [kind for kind in rope.values() if isinstance(kind, Mapping)] or [rope]


def _type_of(kind: Mapping[str, Any]) -> str:
    return str(kind.get("rope_type"))
