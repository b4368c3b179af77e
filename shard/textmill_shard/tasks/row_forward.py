"""One forward pass of transformers' code over some rows: over a padded grid, with or without flat layers, or alone."""

# R rows, L tokens of the longest row, D width of a token vector, V vocabulary, M chosen tokens

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import nn

from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.flat_layers import FlatLayers
from textmill_shard.tasks.grid import Grid, build_grid
from textmill_shard.tasks.rows import Row


class RowLayout(Enum):
    """How rows run through a model's code."""

    FLAT = "flat"  # layers over the tokens alone, embeddings and heads over a padded grid
    PADDED = "padded"  # everything over a padded grid
    ALONE = "alone"  # one row at a time, because the code mixes rows, or padding and tokens


class RowForward:
    """The model as a function of rows. One thread calls it, in torch's inference mode."""

    def __init__(self, model: Any, *, device: torch.device, layout: RowLayout, flat: FlatLayers | None = None) -> None:
        self.model = model
        self.device = device
        self.layout = layout
        self.flat = flat
        accepted = inspect.signature(model.forward).parameters
        self.reads_types = "token_type_ids" in accepted
        self._options = {name: value for name, value in (("use_cache", False),) if name in accepted}
        config = model.config.get_text_config()
        pad_id = getattr(config, "pad_token_id", None)
        self._pad_id = pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0
        self._tap: _LogitTap | None = None

    def grid(self, rows: Sequence[Row]) -> Grid:
        """Return the rows as tensors on the model's device."""
        with_types = self.reads_types and any(row.token_types is not None for row in rows)
        return build_grid(rows, pad_id=self._pad_id, with_types=with_types, device=self.device)

    def run(self, grid: Grid) -> Any:
        """Return the model's output. Its first dimensions are `[R]` or `[R, L]`."""
        inputs: dict[str, Any] = {"input_ids": grid.input_ids_RL, "attention_mask": grid.attention_mask_RL}
        if grid.token_types_RL is not None:
            inputs["token_type_ids"] = grid.token_types_RL
        if self.flat is not None:
            self.flat.begin(grid)
        return self.model(**inputs, **self._options)

    def logits_of(self, grid: Grid, chosen_M: torch.Tensor) -> torch.Tensor:
        """Return `[M, V]`, the vocabulary's logits of chosen tokens, by their places among the R * L of the grid.

        Only these tokens pass the projection onto the vocabulary where the model's code allows that.
        """
        if self._tap is None:
            logits: torch.Tensor = self.run(grid).logits
            return logits.flatten(0, 1).index_select(0, chosen_M)
        with self._tap.choosing(chosen_M):
            logits = self.run(grid).logits
        return logits.reshape(-1, logits.shape[-1])

    def try_tap(self, rows: Sequence[Row], *, tolerance: float) -> bool:
        """Let only chosen tokens pass the projection from now on, if the logits of these rows stay as they are."""
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            return False
        grid = self.grid(rows[:1])
        expected_MV = self.logits_of(grid, grid.places_T[:1])
        self._tap = _LogitTap(head)
        try:
            found_MV = self.logits_of(grid, grid.places_T[:1])
            largest = float(expected_MV.abs().max())
            fits = found_MV.shape == expected_MV.shape
            fits = fits and float((found_MV - expected_MV).abs().max()) <= tolerance * max(largest, 1e-6)
        except CALL_ERRORS:
            fits = False
        if not fits:
            self._tap.remove()
            self._tap = None
        return fits


class _LogitTap:
    """Hands only chosen tokens to the layer that projects vectors onto the vocabulary."""

    def __init__(self, head: nn.Module) -> None:
        self._chosen_M: torch.Tensor | None = None
        self._handle = head.register_forward_pre_hook(self._choose)

    def remove(self) -> None:
        self._handle.remove()

    @contextmanager
    def choosing(self, chosen_M: torch.Tensor) -> Iterator[None]:
        self._chosen_M = chosen_M
        try:
            yield
        finally:
            self._chosen_M = None

    def _choose(self, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        if self._chosen_M is None:
            return None
        (vectors_RLD,) = arguments
        return (vectors_RLD.flatten(0, 1).index_select(0, self._chosen_M).unsqueeze(0),)
