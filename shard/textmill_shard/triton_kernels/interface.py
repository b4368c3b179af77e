"""The kernels that the layers and the attention of a GPU call. `kernels.py` launches the real ones."""

# T tokens, R sequences, X further parts of contexts, B blocks of the widest table, H query heads, K key/value heads,
# D key width, E value width, I width of a norm or of an MLP, N rows of scores, V vocabulary; of experts: N rows,
# P pairs, E experts, I inputs, O outputs

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.model.adapter import LowRank
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.triton_kernels.tiles import ExpertTile, Tile


@dataclass(frozen=True, slots=True)
class PagedIndices:
    """Where the sequences of a step stand, on the device. The same for all layers of the step."""

    query_starts: torch.Tensor  # [R + 1] int32
    context_lens_R: torch.Tensor  # int32
    block_tables_RB: torch.Tensor  # int32
    span_ends_T: torch.Tensor | None = None  # int32, as in the batch


@dataclass(frozen=True, slots=True)
class TileMap:
    """The tiles that cover the queries of a step, and the parts into which their contexts are cut (`tile_map.py`)."""

    tile: Tile
    sequences: torch.Tensor  # [tiles] int32; R stands for the padding behind all sequences
    parts_before: torch.Tensor  # [tiles + 1] int32: the further parts of the tiles before each tile
    further_tiles: torch.Tensor  # [X] int32: the tile of each further part; the number of tiles where there are fewer


@dataclass(frozen=True, slots=True)
class LowRankTable:
    """The adapters of one linear layer by their places. Place 0 and places without an adapter have the rank 0."""

    a_addresses_P: torch.Tensor  # int64: of A, `[r, I]`, contiguous
    b_addresses_P: torch.Tensor  # int64: of the transposed B, `[r, O]`, contiguous
    ranks_P: torch.Tensor  # int32
    scales_P: torch.Tensor  # float32
    low_ranks: Mapping[int, LowRank]  # the matrices at the addresses, which live as long as this object


@dataclass(frozen=True, slots=True)
class ExpertOrder:
    """Which rows of a step go to which expert. A pair is a row with one of its experts.

    With K experts for each row, pair p is that of the row p // K.
    """

    tile: ExpertTile
    pairs_P: torch.Tensor  # int64: the numbers of the pairs in the order of their experts
    ends_E: torch.Tensor  # int32: where in this order the pairs of each expert end


Activation = Literal["silu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


class DeviceKernels(Protocol):
    """The kernels of one GPU. A call launches work on the current stream and waits for nothing."""

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability of the GPU."""
        ...

    def unpack_rows(
        self,
        packed: torch.Tensor,
        last_ids_S: torch.Tensor,
        batch: ForwardBatch,
        *,
        scratch_block: int,
        block_size: int,
    ) -> None:
        """Write the decode step of a packed form (`model/decode_rows.py`, int32) to the tensors of a batch.

        The batch has room for more rows, which become padding. `last_ids_S` int64 has the id that each slot sampled
        last, for rows whose form does not say the id.
        """
        ...

    def write_kv(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        *,
        places_T: torch.Tensor,
        tables: RotaryTables | None,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        """Write keys and values to their places in the pools `[blocks, block_size, K, D or E]`.

        Returns the queries `[T, H, D]`. With tables, queries and keys are turned first. Pools of 8 bits have scales.
        """
        ...

    def plan_tiles(
        self,
        query_starts: torch.Tensor,
        context_lens_R: torch.Tensor,
        tile: Tile,
        *,
        group: int,
        num_kv_heads: int,
        num_tokens: int,
    ) -> TileMap:
        """Return the tiles of a step for `attention`, which layers of equal sizes share."""
        ...

    def attention(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        indices: PagedIndices,
        tiles: TileMap,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        """Return the attended values `[T, H, E]` in the query's dtype, with zeros for padding."""
        ...

    def rms_norm(self, x: torch.Tensor, factor_I: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Return the norm of the rows of `x`, `[..., I]` in the dtype of `x`. The factor is float32."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, factor_I: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `x + residual`, `[..., I]`, and its norm."""
        ...

    def gate_up(self, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return activation(gate) * up, `[T, I]`."""
        ...

    def add_low_rank(
        self,
        out_TO: torch.Tensor,
        x_TI: torch.Tensor,
        table: LowRankTable,
        places_T: torch.Tensor,
        *,
        max_rank: int,
        is_decode: bool,
    ) -> None:
        """Add the products of adapters to rows that a linear layer has computed, in place, in the dtype of x.

        `places_T` int32 has the place of the adapter of each row, 0 for none. No rank is above `max_rank`. `is_decode`:
        neighbours mostly have different adapters.
        """
        ...

    def expert_product(
        self,
        x_NI: torch.Tensor,
        weights: torch.Tensor,
        biases_EO: torch.Tensor | None,
        order: ExpertOrder,
        *,
        has_inputs_first: bool,
    ) -> torch.Tensor:
        """Return the products of the pairs with the matrices of their experts, `[P, O]` in the order of the numbers.

        `x_NI` has a row for each pair, or one for all pairs of a row. The weights are contiguous, `[E, O, I]`, or with
        `has_inputs_first` `[E, I, O]`. Sums are float32, and are rounded once, with the bias.
        """
        ...

    def gumbel(self, seed_words_S2: torch.Tensor, positions_S: torch.Tensor, ids_SC: torch.Tensor) -> torch.Tensor:
        """Return the noise of `sampling/noise.py`, `[S, C]` float64."""
        ...

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        """Read rows of float32 logits once, and return what the sampler needs of them. The logits stay as they are.

        `num_candidates` (at most V) is the wanted number of best ids of each row.
        """
        ...
