"""The adapters on a GPU: for each linear layer a table of the addresses, ranks and scales of its adapters, by place."""

# M adapted layers, P places (0: no adapter), I inputs, O outputs, r rank

from collections.abc import Mapping, Sequence

import torch

from textmill_shard.model.adapter import LowRank
from textmill_shard.model.device_copy import to_device
from textmill_shard.triton_kernels.interface import LowRankTable

FIRST_PLACES = 8
ALIGNMENT_BYTES = (
    16  # the kernels are compiled for addresses that are multiples of this, and believe so of the matrices
)
PLACES_STEP = ALIGNMENT_BYTES // 4  # so that the numbers of each layer begin at such an address
RESERVED_PLACES = 128  # for graphs: 3 KB for each layer


class LowRankTables:
    """The kernels find the matrices of a row by its place, so that a step copies nothing of the adapters to the GPU.

    Only the step loop calls `put`, `remove` and `of`. Their writes to the tables come behind the steps launched so far.
    """

    def __init__(self, paths: Sequence[str], device: torch.device) -> None:
        self._index_of_path = {path: index for index, path in enumerate(paths)}
        self._device = device
        self.version = 0  # changes when the tables have new addresses
        self._low_ranks: dict[str, dict[int, LowRank]] = {path: {} for path in paths}
        self._addresses_2MP = torch.zeros(2, len(paths), FIRST_PLACES, dtype=torch.int64, device=device)
        self._ranks_MP = torch.zeros(len(paths), FIRST_PLACES, dtype=torch.int32, device=device)
        self._scales_MP = torch.zeros(len(paths), FIRST_PLACES, dtype=torch.float32, device=device)

    def reserve(self) -> None:
        """Make room for as many places as a server seldom needs, because recorded graphs know the tables' addresses."""
        self._make_room(RESERVED_PLACES)

    @staticmethod
    def to_device(low: LowRank, device: torch.device) -> LowRank:
        """Return the matrices as the kernels read them: both with the longer dim side by side."""
        b_rO = low.b_Or.T.contiguous().to(device)
        return LowRank(a_rI=low.a_rI.contiguous().to(device), b_Or=b_rO.T, scale=low.scale)

    @staticmethod
    def empty(device: torch.device) -> LowRankTable:
        """Return a table without an adapter."""
        numbers = torch.zeros(FIRST_PLACES, dtype=torch.int64, device=device)
        return LowRankTable(numbers, numbers, numbers.int(), numbers.float(), low_ranks={})

    def put(self, place: int, adapter: Mapping[str, LowRank]) -> None:
        """Let rows with this place find an adapter, whose matrices come from `to_device`."""
        self._make_room(place + 1)
        addresses, ranks, scales = [], [], []
        for path, of_layer in self._low_ranks.items():
            low = adapter.get(path)
            if low is not None:
                of_layer[place] = low
            addresses.append((0, 0) if low is None else (low.a_rI.data_ptr(), low.b_Or.data_ptr()))
            assert all(address % ALIGNMENT_BYTES == 0 for address in addresses[-1]), path
            ranks.append(0 if low is None else low.rank)
            scales.append(0.0 if low is None else low.scale)
        self._addresses_2MP[:, :, place] = to_device(addresses, dtype=torch.int64, device=self._device).T
        self._ranks_MP[:, place] = to_device(ranks, dtype=torch.int32, device=self._device)
        self._scales_MP[:, place] = to_device(scales, dtype=torch.float32, device=self._device)

    def remove(self, place: int) -> None:
        """Free a place. Steps that were launched before still read the matrices, whose memory is taken behind them."""
        self._ranks_MP[:, place] = 0
        for of_layer in self._low_ranks.values():
            of_layer.pop(place, None)

    def of(self, path: str) -> LowRankTable:
        """Return the table of a layer, for one step."""
        index = self._index_of_path[path]
        return LowRankTable(
            a_addresses_P=self._addresses_2MP[0, index],
            b_addresses_P=self._addresses_2MP[1, index],
            ranks_P=self._ranks_MP[index],
            scales_P=self._scales_MP[index],
            low_ranks=self._low_ranks[path],
        )

    def _make_room(self, num_places: int) -> None:
        missing = -(-num_places // PLACES_STEP) * PLACES_STEP - self._ranks_MP.shape[1]
        if missing > 0:
            self.version += 1
            more = (0, max(missing, self._ranks_MP.shape[1]))
            self._addresses_2MP, self._ranks_MP, self._scales_MP = (
                torch.nn.functional.pad(table, more) for table in (self._addresses_2MP, self._ranks_MP, self._scales_MP)
            )
