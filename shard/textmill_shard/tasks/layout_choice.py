"""Finds the way in which rows run through a model's code, by comparing rows that run together with rows alone."""

# n tokens of a row

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.layers.module_swaps import swap_modules
from textmill_shard.native.kernels import Kernels
from textmill_shard.probing.call_observer import CallObserver
from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.flat_layers import FlatLayers, find_stack, reads_vectors
from textmill_shard.tasks.row_forward import RowForward, RowLayout
from textmill_shard.tasks.rows import Row

log = logging.getLogger(__name__)

# Largest difference relative to the largest number. Half precision rounds in another order for other shapes, and layers
# that mix neighbours, or padding and tokens, give tens of per cent.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}
_LENGTHS = (23, 9, 9, 4, 3)
MAX_WINDOW = 1024  # windows of attention up to this size are tried with a row that is longer than the window
_OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")
_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


def probe_rows(config: Any, *, vocab_size: int, max_row_tokens: int) -> list[Row]:
    """Return rows of uneven lengths. Each ends with the end token, because some classifiers look for that token."""
    text_config = config.get_text_config()
    special = {getattr(text_config, name, None) for name in _SPECIAL_IDS}
    end_id = getattr(text_config, "eos_token_id", None)
    plain = [number for number in range(vocab_size) if number not in special] or [0]
    windows = [getattr(text_config, name, None) for name in ("sliding_window", "local_attention")]
    window = max((size for size in windows if isinstance(size, int) and size <= MAX_WINDOW), default=0)
    lengths = [window + 9 if window else _LENGTHS[0], *_LENGTHS[1:]]
    rows = []
    for index, length in enumerate(min(length, max_row_tokens or length) for length in lengths):
        ids = np.array([plain[(7919 * place + 131 * index + 17) % len(plain)] for place in range(length)])
        if isinstance(end_id, int) and 0 <= end_id < vocab_size:
            ids[-1] = end_id
        rows.append(Row(token_ids=ids.astype(np.int64), token_types=None))
    return rows


class RowComparison:
    """The outputs of the probe rows, each computed alone by transformers' code."""

    def __init__(self, model: Any, rows: Sequence[Row], *, device: torch.device, dtype: torch.dtype) -> None:
        self.rows = rows
        self._dtype = dtype
        alone = RowForward(model, device=device, layout=RowLayout.ALONE)
        self._expected = [_outputs(alone, [row])[0] for row in rows]

    def check_finite(self, folder: Any) -> None:
        """Raises ModelFilesError for a model whose own results are no numbers."""
        if not all(bool(np.isfinite(array).all()) for arrays in self._expected for array in arrays):
            raise ModelFilesError(
                f"{folder} holds a model whose results for plain tokens are no numbers (NaN): its weights are damaged, "
                f"or too large for {str(self._dtype).removeprefix('torch.')} (--dtype)"
            )

    def difference(self, forward: RowForward) -> float:
        """Return the largest difference of the rows together from the rows alone, relative to the largest number."""
        largest = 0.0
        parts = [[row] for row in self.rows] if forward.layout is RowLayout.ALONE else [list(self.rows)]
        found = [output for part in parts for output in _outputs(forward, part)]
        for expected_arrays, found_arrays in zip(self._expected, found, strict=True):
            for expected, got in zip(expected_arrays, found_arrays, strict=True):
                scale = max(float(np.abs(expected).max()), 1e-6)
                largest = max(largest, float(np.abs(got - expected).max()) / scale)
        return largest

    def fits(self, forward: RowForward) -> bool:
        """Whether the rows together differ from the rows alone by rounding only."""
        try:
            return self.difference(forward) <= TOLERANCE[self._dtype]
        except (*CALL_ERRORS, UnsupportedModelError) as error:
            log.debug("rows do not run %s", forward.layout.value, exc_info=error)
            return False


@torch.inference_mode()
def choose_row_layout(model: Any, comparison: RowComparison, *, device: torch.device) -> RowForward:
    """Return the forward pass of the first layout whose results are those of the rows alone."""
    flat = _flat(model, comparison, device)
    if flat is not None:
        return flat
    padded = RowForward(model, device=device, layout=RowLayout.PADDED)
    if comparison.fits(padded):
        return padded
    log.warning("rows run one by one, because this model's results change with the rows beside and with padding")
    return RowForward(model, device=device, layout=RowLayout.ALONE)


def _flat(model: Any, comparison: RowComparison, device: torch.device) -> RowForward | None:
    found = find_stack(model)
    if found is None:
        return None
    stack, holder = found
    alone = RowForward(model, device=device, layout=RowLayout.ALONE)
    around = holder if reads_vectors(holder, lambda: alone.run(alone.grid(comparison.rows[:1]))) else None
    try:
        flat = FlatLayers(model, stack=stack, holder=around)
    except CALL_ERRORS:  # the class has no choice of attention
        return None
    forward = RowForward(model, device=device, layout=RowLayout.FLAT, flat=flat)
    if comparison.fits(forward):
        return forward
    flat.remove(model)
    return None


@torch.inference_mode()
def swap_row_layers(
    forward: RowForward, comparison: RowComparison, kernels: Kernels, *, disabled: Sequence[str]
) -> dict[str, int] | None:
    """Swap layers for native ones, and return how many. None: the results changed, so the model cannot be used."""
    model = forward.model
    with CallObserver(model) as calls:
        forward.run(forward.grid(comparison.rows))
    swaps = swap_modules(model, calls, _attending(model), kernels, disabled=disabled)
    return swaps if comparison.fits(forward) else None


def _attending(model: Any) -> set[Any]:
    return {module for module in model.modules() if hasattr(module, "is_causal")}


def _outputs(forward: RowForward, rows: Sequence[Row]) -> list[list[np.ndarray[Any, Any]]]:
    """Return the outputs of each row, without those of padding."""
    grid = forward.grid(rows)
    output = forward.run(grid)
    tensors = [output[name] for name in _OUTPUTS if output.get(name) is not None]
    found = []
    for index, row in enumerate(rows):
        found.append(
            [
                _of_row(tensor[index].float().cpu().numpy(), grid.num_columns, row.num_tokens, tensor.dim())
                for tensor in tensors
            ]
        )
    return found


def _of_row(
    array: np.ndarray[Any, Any], num_columns: int, num_tokens: int, num_dimensions: int
) -> np.ndarray[Any, Any]:
    # Scores of labels are `[R, labels]`, all other outputs begin with `[R, L]`.
    is_by_token = num_dimensions == 3 or array.shape[0] == num_columns
    return array[:num_tokens] if is_by_token else array
