"""What the first pass over the scores of a step changes, as tensors by slot, for kernels that read each row once."""

# N rows of scores, V vocabulary, S slots, E entries of the longest list, C candidates of each row

from dataclasses import dataclass

from torch import Tensor

from textmill_shard.model.forward_batch import RowScan


@dataclass(frozen=True, slots=True)
class IdLists:
    """Distinct ids of each slot. What stands behind the end of a list means nothing."""

    ids_SE: Tensor  # int64
    num_ids_S: Tensor  # int64


@dataclass(frozen=True, slots=True)
class RepetitionChange:
    """Positive scores of the ids are divided by the penalty of the slot, negative ones are multiplied by it."""

    slots_N: Tensor  # int64; -1 for a row that does not ask
    lists: IdLists
    penalties_S: Tensor  # float32


@dataclass(frozen=True, slots=True)
class CountChange:
    """The ids lose `presence + frequency * count` where the count is not 0."""

    slots_N: Tensor  # int64; -1 for a row that does not ask
    lists: IdLists
    counts_SE: Tensor  # float32, as wide as the lists at least
    presence_S: Tensor  # float32
    frequency_S: Tensor  # float32


@dataclass(frozen=True, slots=True)
class BiasChange:
    """The ids gain their amounts."""

    slots_N: Tensor  # int64; -1 for a row that does not ask
    lists: IdLists
    amounts_SE: Tensor  # float32


@dataclass(frozen=True, slots=True)
class MaskChange:
    """Forbidden ids become impossible."""

    slots_N: Tensor  # int64; -1 for a row that does not ask
    forbidden_SV: Tensor  # bool


@dataclass(frozen=True, slots=True)
class Temperatures:
    """The rows whose normaliser at a temperature is wanted."""

    slots_N: Tensor  # int64; -1 for a row that does not ask
    temperatures_S: Tensor  # float32


@dataclass(frozen=True, slots=True)
class ScoreChanges:
    """The changes in the order in which they are made. None: no row asks."""

    repetition: RepetitionChange | None = None
    counts: CountChange | None = None
    bias: BiasChange | None = None
    mask: MaskChange | None = None
    temperatures: Temperatures | None = None

    @property
    def changes_scores(self) -> bool:
        return any(change is not None for change in (self.repetition, self.counts, self.bias, self.mask))


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What one read of the logits gives."""

    scores_NV: Tensor  # float32: the changed scores; the logits themselves where nothing changes
    scan: RowScan  # of the logits, with the normaliser; its `best_N` is that of the changed scores or of the logits
    best_N: Tensor  # int64: the first id with the highest changed score
    # float32: log of the sum of exp((score - highest score) / temperature); None where no row asks for it
    tempered_mass_N: Tensor | None
    # int64: ids of the highest changed scores, the best first; None where the caller wants none, or more than the pass
    # finds. Where the row holds a NaN, the ids mean nothing.
    candidates_NC: Tensor | None = None
