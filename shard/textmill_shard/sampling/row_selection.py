"""Which rows of a step ask for what: marks by slot, set when a request is seated.

N rows that sample, G of them that ask for one thing, S slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from textmill_shard.slots.plan import IdArray
from textmill_shard.slots.sampling_params import SamplingParams

Wish: TypeAlias = Callable[[SamplingParams], bool]


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """Rows that ask for one thing, on the host."""

    rows_G: IdArray  # indices into the N rows, rising
    slots_G: IdArray
    is_all: bool  # these are all N rows


@dataclass(frozen=True, slots=True)
class StageRows:
    """The rows of a `SelectedRows` on the device, and on the host."""

    rows_G: Tensor  # int64, indices into the N rows, rising
    slots_G: Tensor  # int64
    on_host: SelectedRows

    def at(self, places: Tensor) -> "StageRows":
        """The rows at some places of G (int64). Reads the places on the host."""
        host_places = places.cpu().numpy()
        on_host = SelectedRows(self.on_host.rows_G[host_places], self.on_host.slots_G[host_places], is_all=False)
        return StageRows(self.rows_G[places], self.slots_G[places], on_host)


# One entry per wish, in the order of the wishes; None where no row of the step asks.
Selection: TypeAlias = Sequence[SelectedRows | None]
StepRows: TypeAlias = Sequence[StageRows | None]


class RowSelector:
    """Remembers for each slot which of the wishes its request has: one bit per wish."""

    def __init__(self, wishes: Sequence[Wish], *, num_slots: int) -> None:
        self._wishes = tuple(wishes)
        self._marks_S = np.zeros(num_slots, dtype=np.int64)
        self._nothing: Selection = [None] * len(self._wishes)

    def admit(self, slot: int, params: SamplingParams) -> None:
        """Note the wishes of a request just seated."""
        self._marks_S[slot] = sum(1 << place for place, wishes in enumerate(self._wishes) if wishes(params))

    def leave(self, slots: IdArray, wish: int) -> None:
        """Take one wish (its place in the order) off some slots: they ask for it no longer."""
        self._marks_S[slots] &= ~(1 << wish)

    def select(self, slots_N: IdArray) -> Selection:
        """The rows of each wish."""
        marks_N = self._marks_S[slots_N]
        together = int(np.bitwise_or.reduce(marks_N))
        if not together:
            return self._nothing
        return [
            _select(marks_N & (1 << place), slots_N) if together >> place & 1 else None
            for place in range(len(self._wishes))
        ]


def _select(is_marked_N: npt.NDArray[np.int64], slots_N: IdArray) -> SelectedRows:
    rows_G = np.flatnonzero(is_marked_N)
    return SelectedRows(rows_G=rows_G, slots_G=slots_N[rows_G], is_all=len(rows_G) == len(slots_N))
