"""Which rows of a layer's input belong to which adapter in one forward pass on a GPU, without a question to the GPU."""

# T tokens of the pass, N rows whose logits are wanted, B sequences

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.model.forward_batch import ForwardBatch


class DeviceAdapterRows:
    """The places of the rows as tensors of the device, found by the number of rows that a layer gets."""

    def __init__(self, places: Sequence[int], find: Callable[[int], torch.Tensor], *, is_decode: bool) -> None:
        """`places` are those of the pass, and empty where the host does not know them.

        `find` gives int32 `[rows]` for a number of rows.
        """
        self.places = sorted(set(places) - {NO_ADAPTER})
        self.is_decode = is_decode  # each sequence has one row
        self._find = find
        self._places_by_count: dict[int, torch.Tensor] = {}

    def places_of(self, num_rows: int) -> torch.Tensor:
        """Return int32 `[num_rows]`: the place of each row of a layer's input."""
        found = self._places_by_count.get(num_rows)
        if found is None:
            found = self._places_by_count[num_rows] = self._find(num_rows)
        return found

    @staticmethod
    def of_tokens(batch: ForwardBatch) -> "DeviceAdapterRows | None":
        """Return the rows of a pass over all tokens of a batch as one text. None: no row has an adapter."""
        places_R = batch.adapters_R
        assert places_R is not None
        if batch.adapters_on_host and not any(batch.adapters_on_host):
            return None
        num_tokens, num_logits = batch.input_ids_T.shape[0], batch.logit_rows_N.shape[0]
        is_decode = batch.max_query_len == 1
        if is_decode and len(places_R) == num_tokens:
            places_T = places_R
        else:
            tokens_T = torch.arange(num_tokens, dtype=torch.int32, device=places_R.device)
            rows_T = torch.searchsorted(batch.query_starts[1:], tokens_T, right=True)
            places_T = pad(places_R, (0, 1))[rows_T]  # the padding behind the sequences has no adapter
        by_count = {num_tokens: places_T}
        if num_logits != num_tokens:
            by_count[num_logits] = places_T[batch.logit_rows_N]
        return DeviceAdapterRows(batch.adapters_on_host, by_count.__getitem__, is_decode=is_decode)

    @staticmethod
    def of_sequences(batch: ForwardBatch) -> "DeviceAdapterRows | None":
        """Return the rows of a pass over sequences of equally many tokens. None: no row has an adapter."""
        places_B = batch.adapters_R
        assert places_B is not None
        if batch.adapters_on_host and not any(batch.adapters_on_host):
            return None

        def find(num_rows: int) -> torch.Tensor:
            assert num_rows % len(places_B) == 0, f"a layer got {num_rows} rows of {len(places_B)} sequences"
            return places_B.unsqueeze(1).expand(-1, num_rows // len(places_B)).flatten()

        return DeviceAdapterRows(
            batch.adapters_on_host,
            find,
            is_decode=batch.max_query_len == 1,
        )

    @staticmethod
    def of_one(place: int, device: torch.device) -> "DeviceAdapterRows":
        """Return the rows of a pass in which every row has one adapter."""

        def find(num_rows: int) -> torch.Tensor:
            return torch.full((num_rows,), place, dtype=torch.int32, device=device)

        return DeviceAdapterRows([place], find, is_decode=False)
