"""Writes keys and values to their places in plain torch. The reference of the kernel that does so on a GPU."""

# T tokens of the step, H query heads, K key/value heads, D key width, E value width, P rotary width

from typing import Protocol

import torch

from textmill_shard.attention.base import RotaryTables
from textmill_shard.model.kv_scales import KvScales, store


class KvWrite(Protocol):
    """A function that writes as `write_plainly` does, such as the kernel of a GPU."""

    def __call__(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        *,
        places_T: torch.Tensor,
        tables: RotaryTables | None,
    ) -> torch.Tensor: ...


def write_plainly(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKE: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    places_T: torch.Tensor,
    tables: RotaryTables | None,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """Write keys and values into the pools `[blocks, block_size, K, D or E]`, and return the queries `[T, H, D]`.

    Queries and keys are turned by the tables, if there are any. Pools of 8 bits have scales.
    """
    if tables is not None:
        query_THD, key_TKD = turn(query_THD, tables), turn(key_TKD, tables)
    if scales is None:
        key_pool.flatten(0, 1).index_copy_(0, places_T, key_TKD.to(key_pool.dtype))
        value_pool.flatten(0, 1).index_copy_(0, places_T, value_TKE.to(value_pool.dtype))
        return query_THD
    for pool, stored in (
        (key_pool, store(key_TKD, scales.keys_K, key_pool.dtype)),
        (value_pool, store(value_TKE, scales.values_K, value_pool.dtype)),
    ):
        # torch copies no rows of 8-bit numbers with a point, and their bytes are copied as well.
        pool.view(torch.uint8).flatten(0, 1).index_copy_(0, places_T, stored.view(torch.uint8))
    return query_THD


def turn(x_THD: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Return `[T, H, D]` with the first P dims turned (RoFormer, Su et al., 2021), rounded once at the end."""
    cosines_T1P, sines_T1P = tables.cosines_TP.float().unsqueeze(1), tables.sines_TP.float().unsqueeze(1)
    width = cosines_T1P.shape[-1]
    x_THP = x_THD[..., :width].float()
    if tables.is_interleaved:
        partner_THP = torch.stack([-x_THP[..., 1::2], x_THP[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = x_THP.chunk(2, dim=-1)
        partner_THP = torch.cat([-second, first], dim=-1)
    turned_THP = (x_THP * cosines_T1P + partner_THP * sines_T1P).to(x_THD.dtype)
    return torch.cat([turned_THP, x_THD[..., width:]], dim=-1)
