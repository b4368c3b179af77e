"""Rotary tables that must not depend on the neighbours of a token.

transformers picks "longrope" and "dynamic" tables by the longest position of a forward: in a flat batch one long
request would turn the positions of a short one. Here longrope is chosen per token, by the side of the border on which
its request was admitted, and dynamic tables are fixed when the model is loaded.
"""

# T tokens of the step

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from textmill_shard.attention.seam import StepContext
from textmill_shard.errors import UnsupportedModelError

_LONG, _DYNAMIC = "longrope", "dynamic"


def find_rope_border(config: Any) -> int | None:
    """Requests of more tokens than this (prompt and output) take the long table; None: there is only one table."""
    borders = {int(kind["original_max_position_embeddings"]) for kind in _kinds(config) if _type_of(kind) == _LONG}
    if len(borders) > 1:
        raise UnsupportedModelError(f"rotary tables with several borders ({sorted(borders)}) cannot be served")
    return borders.pop() if borders else None


def longest_dynamic_total(config: Any) -> int | None:
    """Tokens that dynamic tables can be stretched to; None: there is no such table."""
    factors = [float(kind.get("factor") or 1.0) for kind in _kinds(config) if _type_of(kind) == _DYNAMIC]
    return int(config.get_text_config().max_position_embeddings * max(factors)) if factors else None


def fix_dynamic_tables(model: nn.Module, *, max_tokens: int) -> None:
    """Give every dynamic rotary module the table of its longest text, for all texts."""
    for module in _rotary_modules(model, _DYNAMIC):
        if not isinstance(module.rope_type, str):
            raise UnsupportedModelError("dynamic rotary tables that differ by layer cannot be served")
        frequencies, scaling = ROPE_INIT_FUNCTIONS[_DYNAMIC](module.config, None, seq_len=max_tokens)
        module.inv_freq = frequencies.to(module.inv_freq.device)
        module.attention_scaling = scaling
        module.rope_type = "default"  # what is not dynamic is not recomputed


def choose_long_tables_by_token(model: nn.Module, context: StepContext, *, border: int) -> None:
    """Let each token take the table of its request (`is_long_rope_T` of the step)."""
    modules = _rotary_modules(model, _LONG)
    if not modules:
        raise UnsupportedModelError("the config names longrope positions, but the model has no such rotary layer")
    for module in modules:
        module.forward = _TableByToken(module.forward, context, border)


class _TableByToken:
    """Asks the rotary layer twice, in a way that shows it only short or only long texts, and takes each token's own."""

    def __init__(self, forward: Any, context: StepContext, border: int) -> None:
        self._forward = forward
        self._context = context
        self._border = border

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        is_long_T = self._context.is_long_rope_T
        if is_long_T is None:  # one text alone, at load: the layer's own choice is right
            return self._forward(x, position_ids, *args, **kwargs)
        short = self._forward(x, position_ids.masked_fill(is_long_T, 0), *args, **kwargs)
        beyond = position_ids.new_full((position_ids.shape[0], 1), self._border)
        long = self._forward(x, torch.cat([position_ids, beyond], dim=1), *args, **kwargs)
        if torch.is_tensor(short):
            return _choose(is_long_T, long, short)
        return tuple(_choose(is_long_T, *pair) for pair in zip(long, short, strict=True))


def _choose(is_long_T: torch.Tensor, long: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
    """Tables are `[1, T, width]`; the long one has a token more, which showed that the text is long."""
    return torch.where(is_long_T[None, :, None], long[:, :-1], short)


def _rotary_modules(model: nn.Module, kind: str) -> list[Any]:
    found = []
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        types = rope_type.values() if isinstance(rope_type, Mapping) else (rope_type,)
        if kind in types:
            found.append(module)
    return found


def _kinds(config: Any) -> list[Mapping[str, Any]]:
    """The rotary parameters; models with windows may have one set per kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [kind for kind in rope.values() if isinstance(kind, Mapping)] or [rope]


def _type_of(kind: Mapping[str, Any]) -> str:
    return str(kind.get("rope_type"))
