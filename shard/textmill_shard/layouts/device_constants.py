"""Keeps on the device what the code of some models computes on the host in each step.

A copy from ordinary memory of the host, or a read of a number on the host, makes a GPU wait, and no CUDA graph can hold
it. The numbers here never change, so that they are computed once.
"""

# T tokens of the step, D width of a head

from typing import Any

import torch
from torch import nn

from textmill_shard.attention.seam import StepContext

_DEFAULT = "default"


def keep_constants(model: nn.Module, context: StepContext) -> None:
    """Set other code where the model computes constants in each step.

    Phi-MoE computes the frequencies of its rotary layer, and Gemma 3n the cutoff of its sparse layers, as a multiple of
    the standard deviation. GPT-2 and others look for ids of padding, to warn of a missing mask; flat batches have none.
    """
    weight = next(model.parameters())
    found: Any
    for found in model.modules():
        if hasattr(found, "warn_if_padding_and_no_attention_mask"):
            found.warn_if_padding_and_no_attention_mask = _see_no_padding
        if _is_rotary_of_phimoe(found):
            found.forward = PhimoeTables(found, context)
        elif hasattr(found, "_gaussian_topk") and found.activation_sparsity > 0:
            found._gaussian_topk = SparseCutoff(found.activation_sparsity, weight.dtype, weight.device)


def _is_rotary_of_phimoe(module: nn.Module) -> bool:
    return type(module).__name__ == "PhimoeRotaryEmbedding"


def _see_no_padding(*_: object) -> None:
    """Stand in for a look at the ids, which would wait for the device."""


class PhimoeTables:
    """Computes the cosines and sines [1, T, D] of Phi-MoE from frequencies on the device.

    The short and the long side of a text have the same frequencies, and a scale each. Each token takes the scale of its
    request (`is_long_rope_T` of the step).
    """

    def __init__(self, module: Any, context: StepContext) -> None:
        self._of_the_model = module.forward
        self._module = module
        self._context = context
        rope = module.config.rope_parameters
        self._scales: tuple[float, float] | None = None  # of the short and the long side
        if rope["rope_type"] != _DEFAULT:
            self._scales = float(rope["short_mscale"]), float(rope["long_mscale"])

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        is_long_T = self._context.is_long_rope_T
        if self._scales is not None and is_long_T is None:
            # One text alone, at load, for which the layer's own choice is right.
            return self._of_the_model(x, position_ids)
        angles = position_ids[..., None].float() * self._module.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        return tuple(self._scaled(table, is_long_T).to(x.dtype) for table in (angles.cos(), angles.sin()))

    def _scaled(self, table: torch.Tensor, is_long_T: torch.Tensor | None) -> torch.Tensor:
        if self._scales is None or is_long_T is None:
            scaled: torch.Tensor = table * self._module.attention_scaling
            return scaled
        short_scale, long_scale = self._scales
        return torch.where(is_long_T[None, :, None], table * long_scale, table * short_scale)


class SparseCutoff:
    """Sets activations to 0 that lie below a quantile of a normal distribution with their mean and deviation."""

    def __init__(self, share: float, dtype: torch.dtype, device: torch.device) -> None:
        """`share` of the activations becomes 0."""
        quantile = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(share, dtype=torch.float32))  # type: ignore[no-untyped-call]
        self._quantile = quantile.to(device, dtype)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        mean = inputs.mean(dim=-1, keepdim=True)
        deviation = inputs.std(dim=-1, keepdim=True, unbiased=False)
        return nn.functional.relu(inputs - (mean + deviation * self._quantile.to(inputs.dtype)))
