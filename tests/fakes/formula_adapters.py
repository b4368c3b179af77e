"""Adapters of the model that is a formula: an adapter shifts each next token by a number, which its folder's name says.

`shift-3` shifts by 3 and takes 30 bytes. `bad` is refused, and `crash` raises what no reader should raise.
"""

import threading
from pathlib import Path

from textmill_shard.engine.adapter_reader import ReadOutcome
from textmill_shard.model.adapter import AdapterRefused, AdapterWeights, PreparedAdapter


class FormulaAdapters:
    """The shifts by place."""

    def __init__(self) -> None:
        self.shifts: dict[int, int] = {0: 0}

    address_version = 0

    def hold_any(self, max_rank: int) -> bool:
        return False

    def prepare(self, weights: AdapterWeights) -> PreparedAdapter:
        raise AssertionError("`read_shift` prepares")

    def put(self, place: int, adapter: PreparedAdapter) -> None:
        assert place not in self.shifts, place
        self.shifts[place] = adapter.form

    def remove(self, place: int) -> None:
        del self.shifts[place]


def digest_of(shift: int) -> bytes:
    """Return the digest of the adapter `shift-<shift>`."""
    return shift.to_bytes(16, "big")


def read_shift(folder: Path) -> PreparedAdapter:
    """Return the adapter of a folder's name."""
    if folder.name == "bad":
        raise AdapterRefused("the folder is bad")
    if folder.name == "crash":
        raise ZeroDivisionError("a bug")
    shift = int(folder.name.removeprefix("shift-"))
    return PreparedAdapter(
        digest=digest_of(shift), max_rank=8, num_modules=2, target_names=("q",), num_bytes=10 * shift, form=shift
    )


class PairGroup:
    """The reading threads of two ranks that are in one process."""

    def __init__(self) -> None:
        self._meeting = threading.Barrier(2)
        self._outcomes: list[ReadOutcome] = []

    def of_rank(self, rank: int) -> "RankOfPair":
        return RankOfPair(self, rank)

    def gather(self, rank: int, outcome: ReadOutcome) -> list[ReadOutcome]:
        if self._meeting.wait(10) == 0:
            self._outcomes = [ReadOutcome(), ReadOutcome()]
        self._meeting.wait(10)
        outcomes = self._outcomes
        outcomes[rank] = outcome
        self._meeting.wait(10)
        return list(outcomes)


class RankOfPair:
    """One of the two ranks, as a reader sees its group."""

    def __init__(self, pair: PairGroup, rank: int) -> None:
        self._pair, self._rank = pair, rank

    def gather(self, outcome: ReadOutcome) -> list[ReadOutcome]:
        return self._pair.gather(self._rank, outcome)
