"""Attention over rows that stand behind each other without padding, for models that call transformers' interface.

A row sees itself alone. Rows of one length are attended together, so the forward pass sorts the rows by length.
"""

# T tokens of all rows, n tokens of a row, r rows of one length, H query heads, D key width, E value width

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.grid import Run

# The mask registry does not have this name, so transformers builds no mask.
FLAT_ATTENTION = "textmill_rows"
_RUNS_ATTRIBUTE = "textmill_rows_of_pass"


@dataclass(slots=True)
class PassRuns:
    """The rows of the forward pass under way, which all layers read."""

    runs: tuple[Run, ...] = ()
    masks: dict[tuple[int, bool, int | None], torch.Tensor | None] = field(default_factory=dict)

    def begin(self, runs: tuple[Run, ...]) -> None:
        self.runs = runs
        self.masks.clear()


def flat_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return `[1, T, H, E]` for query `[1, H, T, D]`, key and value of as many or of fewer heads.

    Causal layers and windows are told as transformers tells them to its kernels of unpadded texts. Raises
    UnsupportedModelError for a layer that adds something to the scores.
    """
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise UnsupportedModelError("its attention adds to the scores")
    state: PassRuns = getattr(module, _RUNS_ATTRIBUTE)
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    window: int | None = kwargs.get("sliding_window")
    num_heads, num_tokens = query.shape[1], query.shape[2]
    out_THE = query.new_empty(num_tokens, num_heads, value.shape[3])
    is_grouped = key.shape[1] != num_heads
    for run in state.runs:
        stop = run.start + run.num_rows * run.length
        mask = _mask(state, run.length, is_causal, window, query.device)
        attended = scaled_dot_product_attention(
            _rows(query, run, stop),
            _rows(key, run, stop),
            _rows(value, run, stop),
            attn_mask=mask,
            is_causal=is_causal and mask is None and run.length > 1,
            scale=scaling,
            enable_gqa=is_grouped,
        )
        out_THE[run.start : stop].view(run.num_rows, run.length, num_heads, -1).copy_(attended.transpose(1, 2))
    return out_THE.unsqueeze(0), None


def attach_runs(model: nn.Module, state: PassRuns) -> None:
    """Let every layer of the model find the rows of the pass, and make the attention known to transformers."""
    AttentionInterface.register(FLAT_ATTENTION, flat_attention)
    for module in model.modules():
        setattr(module, _RUNS_ATTRIBUTE, state)


def _rows(heads: torch.Tensor, run: Run, stop: int) -> torch.Tensor:
    """Return `[r, H, n, D]`, a view of the tokens of a run."""
    rows_HrnD = heads[0, :, run.start : stop].reshape(heads.shape[1], run.num_rows, run.length, heads.shape[3])
    return rows_HrnD.transpose(0, 1)


def _mask(
    state: PassRuns, length: int, is_causal: bool, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """Return bool `[n, n]`, or None where the length needs no window."""
    if window is None or length <= window:
        return None
    key = (length, is_causal, window)
    if key not in state.masks:
        places_n = torch.arange(length, device=device)
        distance_nn = places_n.unsqueeze(1) - places_n
        seen_nn = distance_nn.abs() < window
        state.masks[key] = seen_nn & (distance_nn >= 0) if is_causal else seen_nn
    return state.masks[key]
