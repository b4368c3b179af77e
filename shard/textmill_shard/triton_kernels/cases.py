"""What the variants of the kernels are for: one class of cases for each kernel, and the words in which cases are told.

This file imports no triton.
"""

# G query heads per key/value head, D key width, E value width, P rotary width

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from textmill_shard.triton_kernels.interface import Activation
from textmill_shard.triton_kernels.tiles import (
    ExpertTile,
    LowRankTile,
    Tile,
    attention_tile,
    expert_tile,
    low_rank_tile,
)

Dtype = Literal["bf16", "fp16", "fp32"]
Stored = Literal["fp8e4nv", "fp8e5"]  # Triton's words for float8_e4m3fn and float8_e5m2
Score = Literal["window", "chunk", "softcap", "sinks", "slopes", "spans"]
Turn = Literal["none", "half", "interleaved"]
Change = Literal["repetition", "counts", "bias", "mask", "temperature"]
ITEMSIZE: Mapping[Dtype, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
# Of text alone; a chunk may have spans too, alone and with a window.
SCORES: tuple[Score, ...] = ("window", "chunk", "softcap", "sinks", "slopes")
CHANGES: tuple[Change, ...] = get_args(Change)
SCORE_CHANGES = CHANGES[:-1]  # a temperature changes no score
SPAN_SCORES: tuple[tuple[Score, ...], ...] = (("spans",), ("window", "spans"))
STORED_NAMES: Mapping[Stored, str] = {"fp8e4nv": "fp8_e4m3fn", "fp8e5": "fp8_e5m2"}
LARGEST_STORED: Mapping[Stored, float] = {"fp8e4nv": 448.0, "fp8e5": 57344.0}
LONGEST_CHUNK = 1024  # tokens of a sequence in the chunks of the table


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """What a variant of `paged_attention` is for."""

    dtype: Dtype
    group: int
    key_dim: int
    value_dim: int
    is_decode: bool  # one query per sequence, else chunks
    scores: tuple[Score, ...] = ()
    is_split: bool = False
    stored: Stored | None = None  # type of keys and values; None: that of the queries

    @property
    def tile(self) -> Tile:
        return attention_tile(
            itemsize=ITEMSIZE[self.dtype],
            group=self.group,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            max_query_len=1 if self.is_decode else LONGEST_CHUNK,
            has_8_bits=self.stored is not None,
        )


@dataclass(frozen=True, slots=True)
class MergeCase:
    """What a variant of `merge_splits` is for."""

    dtype: Dtype
    value_dim: int
    is_decode: bool = True
    group: int = 4

    @property
    def tile(self) -> Tile:
        return AttentionCase(self.dtype, self.group, self.value_dim, self.value_dim, self.is_decode).tile


@dataclass(frozen=True, slots=True)
class PlanCase:
    """What a variant of `plan_tiles` is for."""

    num_queries: int  # of a tile


@dataclass(frozen=True, slots=True)
class WriteCase:
    """What a variant of `write_kv` is for."""

    dtype: Dtype
    group: int
    key_dim: int
    value_dim: int
    turn: Turn = "none"
    rotary_dim: int = 0
    stored: Stored | None = None  # as for attention


@dataclass(frozen=True, slots=True)
class NormCase:
    """What a variant of `rms_norm` is for."""

    dtype: Dtype
    width: int
    has_residual: bool = False


@dataclass(frozen=True, slots=True)
class GateCase:
    """What a variant of `gate_up` is for."""

    dtype: Dtype
    width: int
    activation: Activation


@dataclass(frozen=True, slots=True)
class ScanCase:
    """What a variant of `scan_parts` or of `merge_parts` is for.

    All changes of scores have one variant, because a row says by numbers which of them it asks for.
    """

    vocab_size: int
    changes: tuple[Change, ...] = ()
    has_candidates: bool = False

    @property
    def changes_scores(self) -> bool:
        return bool(set(self.changes) - {"temperature"})


@dataclass(frozen=True, slots=True)
class NoiseCase:
    """What a variant of `gumbel` is for."""

    num_ids: int


@dataclass(frozen=True, slots=True)
class LowRankCase:
    """What a variant of `shrink` or of `expand` is for."""

    dtype: Dtype
    width: int  # inputs of `shrink`, outputs of `expand`
    max_rank: int
    is_decode: bool

    @property
    def tile(self) -> LowRankTile:
        return low_rank_tile(max_rank=self.max_rank, is_decode=self.is_decode)


@dataclass(frozen=True, slots=True)
class ExpertCase:
    """What a variant of `expert_product` is for."""

    dtype: Dtype
    num_experts: int
    num_inputs: int
    num_outputs: int
    num_pairs: int  # of rows and experts in a step
    pairs_of_row: int = 1  # that share a row of the inputs
    has_inputs_first: bool = False  # the weights are [experts, inputs, outputs]
    has_bias: bool = False

    @property
    def tile(self) -> ExpertTile:
        return expert_tile(itemsize=ITEMSIZE[self.dtype], num_pairs=self.num_pairs, num_experts=self.num_experts)


@dataclass(frozen=True, slots=True)
class UnpackCase:
    """What a variant of `unpack_rows` is for."""

    has_adapters: bool = False
    has_two_rope_tables: bool = False
    has_rope_positions: bool = False


Case = (
    AttentionCase
    | PlanCase
    | MergeCase
    | WriteCase
    | NormCase
    | GateCase
    | ScanCase
    | LowRankCase
    | ExpertCase
    | NoiseCase
    | UnpackCase
)
