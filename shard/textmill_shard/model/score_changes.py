"""What the first pass over the scores of a step changes, as tensors by slot, for kernels that read each row once."""

# N rows of scores, V vocabulary, S slots, E entries of the longest list, C candidates of each row

from dataclasses import dataclass, replace

from torch import Tensor

from textmill_shard.model.forward_batch import RowScan


@dataclass(frozen=True, slots=True)
class IdLists:
    """Distinct ids of each slot. What stands behind the end of a list means nothing, and no score has a negative id."""

    ids_SE: Tensor  # int64
    num_ids_S: Tensor  # int64

    def counted_from(self, first_id: int) -> "IdLists":
        """Return the lists for rows of scores that begin with the score of `first_id`."""
        return IdLists(self.ids_SE - first_id, self.num_ids_S)


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

    def within(self, first_id: int, num_ids: int) -> "ScoreChanges":
        """Return the changes of rows that hold the scores of so many ids alone, from `first_id` on."""
        seen, counts, bias, mask = self.repetition, self.counts, self.bias, self.mask
        return ScoreChanges(
            repetition=None if seen is None else replace(seen, lists=seen.lists.counted_from(first_id)),
            counts=None if counts is None else replace(counts, lists=counts.lists.counted_from(first_id)),
            bias=None if bias is None else replace(bias, lists=bias.lists.counted_from(first_id)),
            mask=None
            if mask is None
            else replace(mask, forbidden_SV=mask.forbidden_SV[:, first_id : first_id + num_ids].contiguous()),
            temperatures=self.temperatures,
        )

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
