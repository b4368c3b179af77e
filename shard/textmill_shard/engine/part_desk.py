"""What rank 0 asks of the other ranks while they sample together, because the ranks share a vocabulary.

The calls of all ranks keep one order. Behind the forward pass of a step all ranks give their parts. Rank 0 sends the
masks of grammars before that, because rank 0 alone has the matchers. Behind the gifts rank 0 may ask for rows whole
(a look): without overlap before the tokens of the step are shared, and with overlap between two steps, when rank 0 has
read which rows need that.
"""

# N rows that sample, V vocabulary, O rows that are laid together

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from textmill_shard.engine.rank_channel import Look, RankChannel, RankEntry
from textmill_shard.model.forward_batch import ForwardOutput, HostScan
from textmill_shard.sampling.part_rows import JoinedRows, WholeRows
from textmill_shard.sampling.part_sampler import GivenPart, PartSampler
from textmill_shard.sampling.row_selection import StepRows
from textmill_shard.slots.plan import NO_IDS, IdArray


@dataclass(frozen=True, slots=True)
class Gift:
    """What this rank has given of a step. Equal steps have equal numbers on every rank, from 1 on."""

    number: int
    part: GivenPart

    @property
    def may_look(self) -> bool:
        """Whether rank 0 may have to see a row whole."""
        return self.part.may_look


class PartDesk:
    """Rank 0's side. Only the thread of the step loop calls the desk."""

    def __init__(self, sampler: PartSampler, channel: RankChannel) -> None:
        self.sampler = sampler
        self._channel = channel
        self._number = 0

    def send_masks(self, masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Tell the other ranks which ids may follow, for each row of a step that has a grammar."""
        packed = tuple(np.packbits(allowed_V).tobytes() for allowed_V in masks)
        self._channel.send(RankEntry(step=0, masks=packed))

    def give(self, output: ForwardOutput, rows: StepRows) -> Gift:
        """Find what this rank gives of a step. `exchange` must follow."""
        self._number += 1
        return Gift(self._number, give_part(self.sampler, output, rows))

    def exchange(self, gift: Gift) -> JoinedRows:
        """Give this rank's part, and return what the parts of all ranks make together."""
        return self.sampler.join(gift.part, self.sampler.exchange(gift.part))

    def look(self, gift: Gift, rows_O: IdArray, *, is_awaited: bool) -> WholeRows | None:
        """Lay rows of a step together with the other ranks. Returns None where `rows_O` is empty.

        `is_awaited`: the other ranks wait for the word of rank 0, even where rank 0 needs no row.
        """
        if len(rows_O) or (is_awaited and gift.may_look):
            self._channel.send(RankEntry(step=0, look=Look(gift.number, rows_O)))
        return self.sampler.join_rows(gift.part, rows_O) if len(rows_O) else None

    def look_at_none(self, gift: Gift, *, is_awaited: bool) -> None:
        """Let the other ranks go on, because rank 0 needs no row of a step."""
        self.look(gift, NO_IDS, is_awaited=is_awaited)


def give_part(sampler: PartSampler, output: ForwardOutput, rows: StepRows) -> GivenPart:
    """Find what a rank gives of the part of the logits that its forward pass has computed."""
    return sampler.give(output.logits_NV, rows, None if output.scan is None else output.scan.as_row_scan())


def host_scan(joined: JoinedRows) -> HostScan:
    """Return the facts of joined rows on a CPU."""
    scan = joined.scan
    assert scan.log_mass_N is not None
    return HostScan(
        best_N=scan.best_N.numpy(),
        best_scores_N=joined.scores_N.numpy(),
        not_finite_N=scan.not_finite_N.numpy(),
        log_mass_N=scan.log_mass_N.numpy(),
    )
