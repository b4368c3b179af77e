"""Positions per row for decoders that count positions from the start of a cache that all rows share."""

# B sequences, n tokens of each, P positions, D width of the hidden states

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class _Looked(Exception):
    """The positions have been looked up, so that the rest of the forward pass is not needed."""

    def __init__(self, found: torch.Tensor) -> None:
        super().__init__()
        self.found = found


class RowPositions:
    """Returns to each row of a decoder's batch the embeddings of the row's own positions.

    Decoders with a layer `embed_positions` look positions up there. The embeddings that this layer returns for one long
    text are kept as a table `[P, D]`. Decoders without such a layer have relative positions and are left alone.
    """

    def __init__(self, decoder: Any, *, num_positions: int, text_id: int, device: torch.device) -> None:
        self._positions_Bn: torch.Tensor | None = None
        self._table_PD: torch.Tensor | None = None
        layer: nn.Module | None = getattr(decoder, "embed_positions", None)
        if layer is None or not num_positions:
            return
        self._table_PD = _tabulate(decoder, layer, num_positions=num_positions, text_id=text_id, device=device)
        layer.register_forward_hook(self._replace)

    @contextmanager
    def given(self, positions_Bn: torch.Tensor) -> Iterator[None]:
        """Within this context, `positions_Bn` (int64) are the positions of the decoder's tokens."""
        self._positions_Bn = positions_Bn
        try:
            yield
        finally:
            self._positions_Bn = None

    def _replace(self, layer: nn.Module, arguments: Any, found: torch.Tensor) -> torch.Tensor:
        if self._positions_Bn is None:
            return found
        assert self._table_PD is not None
        return self._table_PD[self._positions_Bn]


def _tabulate(
    decoder: Any, layer: nn.Module, *, num_positions: int, text_id: int, device: torch.device
) -> torch.Tensor:
    """Return the embeddings `[P, D]` that the layer has for a text of `num_positions` tokens."""

    def stop(layer: nn.Module, arguments: Any, found: torch.Tensor) -> None:
        raise _Looked(found)

    handle = layer.register_forward_hook(stop)
    try:
        with torch.inference_mode():
            ids = torch.full((1, num_positions), text_id, dtype=torch.int64, device=device)
            decoder(input_ids=ids, use_cache=False)
    except _Looked as looked:
        return looked.found.reshape(num_positions, -1).clone()
    finally:
        handle.remove()
    raise AttributeError("its decoder has embed_positions that it does not use")
