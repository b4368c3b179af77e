"""Rows as padded tensors, and the places of their tokens in the padded grid."""

# R rows, L tokens of the longest row, T tokens of all rows

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from textmill_shard.tasks.rows import Row


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of one length that stand behind each other: tokens `start .. start + num_rows * length - 1` of all rows."""

    start: int
    num_rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Some rows, padded on the right. The tensors lie on the device of the model."""

    input_ids_RL: torch.Tensor  # int64
    attention_mask_RL: torch.Tensor  # int64, 1 at tokens and 0 at padding
    token_types_RL: torch.Tensor | None  # int64; None = the model reads none
    lengths_R: torch.Tensor  # int64
    places_T: torch.Tensor  # int64, the place of each token among the R * L of the grid, row after row
    runs: tuple[Run, ...]

    @property
    def num_rows(self) -> int:
        return self.input_ids_RL.shape[0]

    @property
    def num_columns(self) -> int:
        return self.input_ids_RL.shape[1]

    @property
    def is_full(self) -> bool:
        """Whether the rows are of one length, so that nothing is padded."""
        return len(self.runs) == 1


def build_grid(rows: Sequence[Row], *, pad_id: int, with_types: bool, device: torch.device) -> Grid:
    """Pad the rows. Copies to the device happen here."""
    lengths = [row.num_tokens for row in rows]
    num_columns = max(lengths)
    ids = np.full((len(rows), num_columns), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), num_columns), dtype=np.int64)
    types = np.zeros((len(rows), num_columns), dtype=np.int64) if with_types else None
    for index, row in enumerate(rows):
        ids[index, : row.num_tokens] = row.token_ids
        mask[index, : row.num_tokens] = 1
        if types is not None and row.token_types is not None:
            types[index, : row.num_tokens] = row.token_types
    runs: list[Run] = []
    start = 0
    for length, same in groupby(lengths):
        num_rows = len(list(same))
        runs.append(Run(start=start, num_rows=num_rows, length=length))
        start += num_rows * length
    return Grid(
        input_ids_RL=torch.from_numpy(ids).to(device),
        attention_mask_RL=torch.from_numpy(mask).to(device),
        token_types_RL=None if types is None else torch.from_numpy(types).to(device),
        lengths_R=torch.tensor(lengths, device=device),
        places_T=torch.from_numpy(np.flatnonzero(mask)).to(device),
        runs=tuple(runs),
    )
