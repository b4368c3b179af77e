"""Paged attention by FlashAttention, where the package is installed and asked for. Nothing is downloaded.

Two packages are known: `flash_attn_interface` (FlashAttention 3, blocks of any size) and `flash_attn` (FlashAttention
2, blocks of a multiple of 256 tokens). Both are compiled for one version of torch, and neither is a dependency.
"""

# T tokens, R sequences, H query heads, K key/value heads, D key width, E value width

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.attention.kv_write import KvWrite, write_plainly
from textmill_shard.errors import BackendRefused
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KvScales

MAX_HEAD_DIM = 256
HEAD_DIM_STEP = 8  # heads of other dims would be padded, and the whole pool with them, in each layer of each step
BLOCK_SIZES_OF_2 = 256  # FlashAttention 2 reads blocks of a multiple of this many tokens
_ALL = -1  # a window without a limit
Package = Callable[[str], Any]  # returns the module of a name, or raises ImportError


class _Call(Protocol):
    """The function of one of the packages."""

    takes_chunks: bool

    def __call__(
        self, step: "FlashStep", query_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class FlashStep:
    """The indices of one step, as both packages read them."""

    call: _Call
    kv_write: KvWrite
    query_starts: torch.Tensor  # [R + 1] int32
    context_starts: torch.Tensor  # [R + 1] int32
    context_lens_R: torch.Tensor  # int32
    block_tables_RB: torch.Tensor  # int32
    kv_places_T: torch.Tensor  # int64
    max_query_len: int
    max_context_len: int

    def write(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        tables: RotaryTables | None,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        assert scales is None, "pools of 8 bits are refused at the start"
        return self.kv_write(
            query_THD, key_TKD, value_TKE, key_pool, value_pool, places_T=self.kv_places_T, tables=tables
        )

    def attend(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        assert scales is None, "pools of 8 bits are refused at the start"
        return self.call(self, query_THD.to(key_pool.dtype), key_pool, value_pool, rule)


class FlashAttention:
    """The backend for pools of 16-bit numbers on a GPU."""

    name = "flash"

    def __init__(self, call: _Call, kv_write: KvWrite = write_plainly) -> None:
        self._call = call
        self._kv_write = kv_write

    def with_write(self, kv_write: KvWrite) -> "FlashAttention":
        """Return the backend with another function that turns queries and keys, and writes keys and values."""
        return FlashAttention(self._call, kv_write)

    def accept(self, rule: AttentionRule, spec: LayerKvSpec) -> AttentionRule:
        wanted = {
            "sinks": rule.sinks_H is not None,
            "images whose tokens see each other": rule.sees_spans,
            "slopes (ALiBi)": rule.slopes_H is not None,
            "chunks": rule.chunk_tokens is not None and not self._call.takes_chunks,
            "keys and values of different width": spec.key_dim != spec.value_dim,
            f"heads of more than {MAX_HEAD_DIM} dims": spec.key_dim > MAX_HEAD_DIM,
            f"heads of {spec.key_dim} dims, no multiple of {HEAD_DIM_STEP}": spec.key_dim % HEAD_DIM_STEP != 0,
        }
        unknown = [name for name, is_wanted in wanted.items() if is_wanted]
        if unknown:
            raise BackendRefused(
                f"--attention-backend flash does not compute {unknown[0]}, which a layer of this model needs: "
                "--attention-backend triton"
            )
        return rule

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> FlashStep:
        return FlashStep(
            call=self._call,
            kv_write=self._kv_write,
            query_starts=batch.query_starts,
            context_starts=pad(batch.context_lens_R.cumsum(0, dtype=torch.int32), (1, 0)),
            context_lens_R=batch.context_lens_R,
            block_tables_RB=batch.block_tables_RB,
            kv_places_T=batch.kv_places_T,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
        )


class _Version3:
    takes_chunks = True

    def __init__(self, package: Any) -> None:
        self._attend = package.flash_attn_with_kvcache

    def __call__(
        self, step: FlashStep, query_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        out_THE: torch.Tensor = self._attend(
            query_THD,
            keys,
            values,
            cache_seqlens=step.context_lens_R,
            page_table=step.block_tables_RB,
            cu_seqlens_q=step.query_starts,
            max_seqlen_q=step.max_query_len,
            softmax_scale=rule.scaling,
            causal=True,
            window_size=_window(rule),
            attention_chunk=rule.chunk_tokens or 0,
            softcap=rule.softcap or 0.0,
        )
        return out_THE


class _Version2:
    takes_chunks = False

    def __init__(self, package: Any) -> None:
        self._attend = package.flash_attn_varlen_func

    def __call__(
        self, step: FlashStep, query_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        out_THE: torch.Tensor = self._attend(
            query_THD,
            keys,
            values,
            cu_seqlens_q=step.query_starts,
            cu_seqlens_k=step.context_starts,
            max_seqlen_q=step.max_query_len,
            max_seqlen_k=step.max_context_len,
            softmax_scale=rule.scaling,
            causal=True,
            window_size=_window(rule),
            softcap=rule.softcap or 0.0,
            block_table=step.block_tables_RB,
        )
        return out_THE


def load_flash(*, dtype: torch.dtype, block_size: int, package: Package = import_module) -> FlashAttention:
    """Return the backend by the newest package that can be imported. Raises BackendRefused with a sentence."""
    if dtype not in (torch.float16, torch.bfloat16):
        raise BackendRefused(
            f"--attention-backend flash computes in 16 bits, and the model is in {str(dtype).removeprefix('torch.')}: "
            "--dtype bfloat16, or --attention-backend triton"
        )
    try:
        return FlashAttention(_Version3(package("flash_attn_interface")))
    except ImportError:
        pass
    try:
        version_2 = package("flash_attn")
    except ImportError as error:
        raise BackendRefused(
            "--attention-backend flash needs the package flash_attn_interface or flash_attn, and neither can be "
            f"imported ({error}): install one for this torch, or --attention-backend triton"
        ) from error
    if block_size % BLOCK_SIZES_OF_2:
        raise BackendRefused(
            f"--attention-backend flash by FlashAttention 2 reads blocks of {BLOCK_SIZES_OF_2} tokens, and "
            f"--block-size is {block_size}: --block-size {BLOCK_SIZES_OF_2}, or --attention-backend triton"
        )
    return FlashAttention(_Version2(version_2))


def _window(rule: AttentionRule) -> tuple[int, int]:
    """Return how many keys before and behind its own a token sees."""
    return (_ALL, _ALL) if rule.window_tokens is None else (rule.window_tokens - 1, 0)
