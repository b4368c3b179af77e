"""Positions per row for decoders that count them from the start of a cache, which rows of a batch do not share."""

# B sequences, n tokens of each, P positions, D width of the hidden states

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class _Looked(Exception):
    """The positions have been looked up: the rest of the forward is not needed."""

    def __init__(self, found: torch.Tensor) -> None:
        super().__init__()
        self.found = found


class RowPositions:
    """Gives each row of a decoder's batch the embeddings of its own positions.

    Decoders that have a layer `embed_positions` look positions up there; what it says to one long text is kept as a
    table `[P, D]`. Other decoders are left alone: their positions are relative.
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
        """Within, these (int64) are the positions of the decoder's tokens."""
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
    """Give `[P, D]`: what the layer says to a text of `num_positions` tokens."""

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
