"""Which rows of a step ask for a stage, a draw or log-probabilities.

A request can ask for several things, here called wishes. Marks by slot, which are set when a request is admitted, say
which wishes it has.

N rows that sample, G rows among them that have one wish, S slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from textmill_shard.slots.plan import IdArray
from textmill_shard.slots.sampling_params import SamplingParams

Wish: TypeAlias = Callable[[SamplingParams], bool]  # whether a request with these parameters has the wish


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The rows that have one wish, as arrays on the host."""

    rows_G: IdArray  # indices into the N rows, rising
    slots_G: IdArray
    is_all: bool  # all N rows have the wish


@dataclass(frozen=True, slots=True)
class StageRows:
    """The rows that have one wish, as tensors on the device, with the arrays on the host."""

    rows_G: Tensor  # int64, indices into the N rows, rising
    slots_G: Tensor  # int64
    on_host: SelectedRows


# One entry per wish, in the order of the wishes; None where no row of the step has the wish.
Selection: TypeAlias = Sequence[SelectedRows | None]
StepRows: TypeAlias = Sequence[StageRows | None]


class RowSelector:
    """Remembers for each slot which wishes its request has, as one bit per wish."""

    def __init__(self, wishes: Sequence[Wish], *, num_slots: int) -> None:
        self._wishes = tuple(wishes)
        self._marks_S = np.zeros(num_slots, dtype=np.int64)
        self._nothing: Selection = [None] * len(self._wishes)

    def admit(self, slot: int, params: SamplingParams) -> None:
        """Note the wishes of the request that takes the slot."""
        self._marks_S[slot] = sum(1 << place for place, has_wish in enumerate(self._wishes) if has_wish(params))

    def leave(self, slots: IdArray, wish: int) -> None:
        """Take one wish off some slots. `wish` is its place in the order of the wishes."""
        self._marks_S[slots] &= ~(1 << wish)

    def select(self, slots_N: IdArray) -> Selection:
        """Return the rows of each wish, among the rows in which `slots_N` sample."""
        marks_N = self._marks_S[slots_N]
        union = int(np.bitwise_or.reduce(marks_N))
        if not union:
            return self._nothing
        return [
            _select(marks_N & (1 << place), slots_N) if union >> place & 1 else None
            for place in range(len(self._wishes))
        ]


def _select(is_marked_N: npt.NDArray[np.int64], slots_N: IdArray) -> SelectedRows:
    rows_G = np.flatnonzero(is_marked_N)
    return SelectedRows(rows_G=rows_G, slots_G=slots_N[rows_G], is_all=len(rows_G) == len(slots_N))
