"""Where a step takes the rows of images from: from this rank's store, or from rank 0.

Only rank 0 has the tower. It sends the other ranks the rows that a step reads, when it builds the batch of the step.
"""

# m rows that a step reads, D width of the embeddings, k layers that get rows of their own

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from textmill_shard.engine.rank_channel import RankChannel
from textmill_shard.model.media import MediaFacts, MediaRows


@dataclass(frozen=True, slots=True)
class RowPiece:
    """Rows `first_row` to `first_row + num_rows` - 1 of an item."""

    digest: bytes
    first_row: int
    num_rows: int


class RowSource(Protocol):
    """What a rank asks for the rows of a step. All ranks ask for equal pieces in equal order."""

    def take(self, pieces: Sequence[RowPiece]) -> MediaRows:
        """Return the rows `[m, D]` of the pieces, one behind the other, on the device of the model."""
        ...


class KeptItems(Protocol):
    """The rows that rank 0 keeps (`media_store.py`)."""

    def rows_of(self, digest: bytes) -> MediaRows: ...


class OwnRows:
    """The rows of rank 0, which it shares with the other ranks where there are any."""

    def __init__(self, items: KeptItems, channel: RankChannel) -> None:
        self._items = items
        self._channel = channel

    def take(self, pieces: Sequence[RowPiece]) -> MediaRows:
        rows, deepstacks = [], []
        for piece in pieces:
            kept = self._items.rows_of(piece.digest)
            chosen = slice(piece.first_row, piece.first_row + piece.num_rows)
            rows.append(kept.rows_nD[chosen])
            if kept.deepstack_knD is not None:
                deepstacks.append(kept.deepstack_knD[:, chosen])
        rows_mD = torch.cat(rows)
        deepstack_kmD = torch.cat(deepstacks, dim=1) if deepstacks else None
        for tensor in (rows_mD, deepstack_kmD):
            if tensor is not None:
                self._channel.share_tensor(tensor)
        return MediaRows(rows_mD, deepstack_kmD)


class ReceivedRows:
    """The rows that rank 0 sends to another rank."""

    def __init__(self, facts: MediaFacts, channel: RankChannel, *, dtype: torch.dtype, device: torch.device) -> None:
        self._channel = channel
        self._num_deepstack = facts.num_deepstack
        self._width = facts.row_bytes // dtype.itemsize // (1 + facts.num_deepstack)
        self._dtype = dtype
        self._device = device

    def take(self, pieces: Sequence[RowPiece]) -> MediaRows:
        num_rows = sum(piece.num_rows for piece in pieces)
        rows_mD = self._receive(num_rows, self._width)
        deepstack_kmD = self._receive(self._num_deepstack, num_rows, self._width) if self._num_deepstack else None
        return MediaRows(rows_mD, deepstack_kmD)

    def _receive(self, *shape: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._channel.share_tensor(tensor)
        return tensor
