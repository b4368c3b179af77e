"""Which rows of a layer's input belong to which adapter in one forward pass."""

# T tokens of the pass, N rows whose logits are wanted, B sequences

from collections.abc import Mapping, Sequence

import torch

from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.model.forward_batch import ForwardBatch


class AdapterRows:
    """The rows of one forward pass, found by the number of rows that a layer gets.

    A layer of the decoder gets all tokens, and the head may get the rows alone whose logits are wanted.
    """

    def __init__(
        self, places_by_count: Mapping[int, Sequence[int]], device: torch.device, *, is_by_sequence: bool = False
    ) -> None:
        """`places_by_count` has for each number of rows the place of each row.

        With `is_by_sequence` its one key is a number of sequences, of which each may have any equal number of rows.
        """
        self._places_by_count = places_by_count
        self._device = device
        self._is_by_sequence = is_by_sequence
        self._index_by_count: dict[int, torch.Tensor] = {}
        self._rows_by_count: dict[int, list[torch.Tensor]] = {}
        all_places = {place for places in places_by_count.values() for place in places}
        self.places = sorted(all_places - {NO_ADAPTER})
        self._only = self.places[0] if len(all_places) == 1 else None  # the place of every row, if there is one

    @staticmethod
    def of_tokens(batch: ForwardBatch) -> "AdapterRows | None":
        """Return the rows of a pass over all tokens of a batch as one text. None: no row has an adapter."""
        assert batch.adapters_R is not None
        places = batch.adapters_R.tolist()
        if not any(places):
            return None
        lengths = batch.query_starts.diff().tolist()
        of_token = [place for place, length in zip(places, lengths, strict=True) for _ in range(length)]
        of_token += [NO_ADAPTER] * (batch.input_ids_T.shape[0] - len(of_token))  # padding
        of_logits = [of_token[token] for token in batch.logit_rows_N.tolist()]
        return AdapterRows({len(of_logits): of_logits, len(of_token): of_token}, batch.input_ids_T.device)

    @staticmethod
    def of_sequences(batch: ForwardBatch) -> "AdapterRows | None":
        """Return the rows of a pass over sequences of equally many tokens. None: no row has an adapter."""
        assert batch.adapters_R is not None
        places = batch.adapters_R.tolist()
        if not any(places):
            return None
        return AdapterRows({len(places): places}, batch.input_ids_T.device, is_by_sequence=True)

    @staticmethod
    def of_one(place: int, device: torch.device) -> "AdapterRows":
        """Return the rows of a pass in which every row has one adapter."""
        return AdapterRows({1: [place]}, device, is_by_sequence=True)

    def index_of(self, num_rows: int) -> torch.Tensor:
        """Return int32 `[num_rows]`: for each row of a layer's input an index into `places`, or -1 for no adapter."""
        found = self._index_by_count.get(num_rows)
        if found is None:
            index = {place: number for number, place in enumerate(self.places)}
            of_row = [index.get(place, -1) for place in self._places_of(num_rows)]
            found = self._index_by_count[num_rows] = torch.tensor(of_row, dtype=torch.int32, device=self._device)
        return found

    def rows_of_places(self, num_rows: int) -> list[torch.Tensor]:
        """Return for each of `places` the rows, int64, that have this adapter among `num_rows` rows."""
        found = self._rows_by_count.get(num_rows)
        if found is None:
            index_T = self.index_of(num_rows)
            found = [(index_T == number).nonzero().squeeze(1) for number in range(len(self.places))]
            self._rows_by_count[num_rows] = found
        return found

    def _places_of(self, num_rows: int) -> Sequence[int]:
        if self._only is not None:
            return [self._only] * num_rows
        if not self._is_by_sequence:
            assert num_rows in self._places_by_count, f"a layer got {num_rows} rows, of {list(self._places_by_count)}"
            return self._places_by_count[num_rows]
        [(num_sequences, places)] = self._places_by_count.items()
        assert num_rows % num_sequences == 0, f"a layer got {num_rows} rows of {num_sequences} sequences"
        return [place for place in places for _ in range(num_rows // num_sequences)]
