"""Paged attention in plain torch, which gathers the blocks and then takes scaled dot products.

The other backends are tested against this one.
"""

# T tokens, R sequences, B blocks of the widest table, C places gathered, H query heads, K key/value heads,
# G = H // K query heads per key/value head, Q queries per sequence and key/value head, D key width, E value width

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.attention.kv_write import write_plainly
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KvScales, restore

# A longer chunk is attended in pieces, because a mask has queries x context elements.
MAX_PIECE_QUERIES = 256


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The sequences with one query each, which are attended together."""

    token_rows_R: torch.Tensor  # int64, row of the query in the flat batch
    block_tables_RB: torch.Tensor  # int64, cut to the longest context of these sequences
    positions_R1: torch.Tensor  # int64, place of the query in its own context; a single token is a whole span
    stale: torch.Tensor  # int64, indices of the gathered places (of R * C) beyond their sequence's context


@dataclass(frozen=True, slots=True)
class PrefillPiece:
    """Some queries of one sequence, one behind the other."""

    start: int  # rows start .. stop of the flat batch
    stop: int
    block_table_1B: torch.Tensor  # int64, cut to the blocks that the last of these queries sees
    positions_Q1: torch.Tensor  # int64
    last_seen_Q1: torch.Tensor  # int64: the last place that a query sees where spans are seen
    stale: torch.Tensor  # int64, indices of the gathered places (of C) beyond what the last query sees


@dataclass(frozen=True, slots=True)
class ReferenceStep:
    """The parts of a flat batch, which are attended one after the other."""

    decode: DecodeRows | None
    pieces: tuple[PrefillPiece, ...]
    num_tokens: int
    is_whole: bool  # every row of the batch belongs to a part
    kv_places_T: torch.Tensor  # int64

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
        return write_plainly(query_THD, key_TKD, value_TKE, key_pool, value_pool, self.kv_places_T, tables, scales)

    def attend(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        num_heads, num_kv_heads = query_THD.shape[1], key_pool.shape[2]
        out_shape = (self.num_tokens, num_heads, value_pool.shape[3])
        out_THE = query_THD.new_empty(out_shape) if self.is_whole else query_THD.new_zeros(out_shape)
        key_scales_K = None if scales is None else scales.keys_K
        value_scales_K = None if scales is None else scales.values_K

        if self.decode is not None:
            rows = self.decode
            # The query heads that share a key head stand on the query axis, so that no key and no value is repeated.
            query_RKGD = _group(query_THD[rows.token_rows_R], num_kv_heads)
            key_RKCD = _gather(key_pool, rows.block_tables_RB, rows.stale, key_scales_K, query_THD.dtype)
            value_RKCE = _gather(value_pool, rows.block_tables_RB, rows.stale, value_scales_K, query_THD.dtype)
            mask_R11C = _may_see(rows.positions_R1, key_RKCD.shape[2], rule, rows.positions_R1)[:, None, None, :]
            sinks_KG1 = _sinks(rule, num_kv_heads, num_queries=1)
            losses = _losses(rows.positions_R1.unsqueeze(2), key_RKCD.shape[2], rule, num_kv_heads)
            out = _attend(query_RKGD, key_RKCD, value_RKCE, mask_R11C, sinks_KG1, losses, rule)
            out_THE[rows.token_rows_R] = out.flatten(1, 2)

        for piece in self.pieces:
            num_queries = piece.stop - piece.start
            query_QKGD = _group(query_THD[piece.start : piece.stop], num_kv_heads)
            query_1KQD = (
                query_QKGD.permute(1, 2, 0, 3).flatten(1, 2).unsqueeze(0)
            )  # Q counts the queries of the first of the G heads, then those of the next
            key_1KCD = _gather(key_pool, piece.block_table_1B, piece.stale, key_scales_K, query_THD.dtype)
            value_1KCE = _gather(value_pool, piece.block_table_1B, piece.stale, value_scales_K, query_THD.dtype)
            last_seen_Q1 = piece.last_seen_Q1 if rule.sees_spans else piece.positions_Q1
            mask_QC = _may_see(piece.positions_Q1, key_1KCD.shape[2], rule, last_seen_Q1)
            mask_QC = mask_QC.repeat(num_heads // num_kv_heads, 1)
            sinks_KQ1 = _sinks(rule, num_kv_heads, num_queries=num_queries)
            losses = _losses(piece.positions_Q1.unsqueeze(0), key_1KCD.shape[2], rule, num_kv_heads)
            out = _attend(query_1KQD, key_1KCD, value_1KCE, mask_QC, sinks_KQ1, losses, rule)
            out_KGQE = out.reshape(num_kv_heads, num_heads // num_kv_heads, num_queries, -1)
            out_THE[piece.start : piece.stop] = out_KGQE.permute(2, 0, 1, 3).flatten(1, 2)
        return out_THE


class ReferenceAttention:
    """The backend of plain torch, exact in fp32. Decode rows are gathered up to the longest context among them."""

    name = "reference"

    def accept(self, rule: AttentionRule, spec: LayerKvSpec) -> AttentionRule:
        return rule

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> ReferenceStep:
        # These reads wait for the device on a GPU. No other backend waits for the device.
        starts = batch.query_starts.tolist()
        context_lens = batch.context_lens_R.tolist()
        tables_RB = batch.block_tables_RB.long()
        query_lens = [stop - start for start, stop in pairwise(starts)]
        device = tables_RB.device

        singles = [row for row, length in enumerate(query_lens) if length == 1]
        decode = None
        if singles:
            rows_R = torch.tensor(singles, device=device)
            num_blocks = -(-max(context_lens[row] for row in singles) // block_size)
            positions_R1 = batch.context_lens_R.long()[rows_R].unsqueeze(1) - 1
            places_C = torch.arange(num_blocks * block_size, device=device)
            decode = DecodeRows(
                token_rows_R=torch.tensor([starts[row] for row in singles], device=device),
                block_tables_RB=tables_RB[rows_R, :num_blocks],
                positions_R1=positions_R1,
                stale=(places_C > positions_R1).flatten().nonzero().squeeze(1),
            )
        pieces = []
        for row, length in enumerate(query_lens):
            if length <= 1:
                continue
            first_position = context_lens[row] - length
            for offset in range(0, length, MAX_PIECE_QUERIES):
                stop = min(offset + MAX_PIECE_QUERIES, length)
                positions_Q1 = torch.arange(first_position + offset, first_position + stop, device=device).unsqueeze(1)
                last_seen_Q1, num_seen = positions_Q1, first_position + stop
                if batch.span_ends_T is not None:
                    ends_Q = batch.span_ends_T[starts[row] + offset : starts[row] + stop].long()
                    last_seen_Q1 = positions_Q1.maximum(ends_Q.unsqueeze(1) - 1).clamp(max=context_lens[row] - 1)
                    num_seen = int(last_seen_Q1.max()) + 1
                num_blocks = -(-num_seen // block_size)
                pieces.append(
                    PrefillPiece(
                        start=starts[row] + offset,
                        stop=starts[row] + stop,
                        block_table_1B=tables_RB[row : row + 1, :num_blocks],
                        positions_Q1=positions_Q1,
                        last_seen_Q1=last_seen_Q1,
                        stale=torch.arange(num_seen, num_blocks * block_size, device=device),
                    )
                )
        num_tokens = batch.input_ids_T.shape[0]
        return ReferenceStep(
            decode=decode,
            pieces=tuple(pieces),
            num_tokens=num_tokens,
            is_whole=starts[-1] == num_tokens,
            kv_places_T=batch.kv_places_T,
        )


def _group(query_QHD: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """Return the queries as `[Q, K, G, D]`, grouped by the key/value head that they share."""
    num_queries, num_heads, key_dim = query_QHD.shape
    return query_QHD.reshape(num_queries, num_kv_heads, num_heads // num_kv_heads, key_dim)


def _gather(
    pool: torch.Tensor,
    block_tables_RB: torch.Tensor,
    stale: torch.Tensor,
    scales_K: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return `[R, K, C, dim]` from the pool `[blocks, block_size, K, dim]`, with zeros at the stale places.

    With scales, the pool has 8 bits and the result `dtype`.
    """
    gathered = pool.flatten(1).index_select(0, block_tables_RB.flatten())
    if scales_K is not None:
        gathered = restore(gathered.view(-1, *pool.shape[2:]), scales_K, dtype)
    # An earlier owner of a block may have left NaN there, and a weight of zero times NaN is NaN.
    gathered.view(-1, pool.shape[2] * pool.shape[3]).index_fill_(0, stale, 0.0)
    num_sequences, num_blocks = block_tables_RB.shape
    return gathered.view(num_sequences, num_blocks * pool.shape[1], pool.shape[2], pool.shape[3]).transpose(1, 2)


def _may_see(
    positions_Q1: torch.Tensor, num_places: int, rule: AttentionRule, last_seen_Q1: torch.Tensor
) -> torch.Tensor:
    """Return bool `[Q, C]`: whether a query at its position may look at a place of its context."""
    places_C = torch.arange(num_places, device=positions_Q1.device)
    may_see = places_C <= last_seen_Q1
    if rule.window_tokens is not None:
        may_see &= places_C > positions_Q1 - rule.window_tokens
    if rule.chunk_tokens is not None:
        may_see &= places_C // rule.chunk_tokens == positions_Q1 // rule.chunk_tokens
    return may_see


def _sinks(rule: AttentionRule, num_kv_heads: int, *, num_queries: int) -> torch.Tensor | None:
    """Return `[K, G * queries, 1]`, one sink score per query of `_attend`; None for a rule without sinks."""
    if rule.sinks_H is None:
        return None
    return rule.sinks_H.view(num_kv_heads, -1, 1).repeat_interleave(num_queries, dim=1)


def _losses(
    positions_RQ1: torch.Tensor, num_places: int, rule: AttentionRule, num_kv_heads: int
) -> torch.Tensor | None:
    """Return `[R, K, G * Q, C]`, slope * (place - position); None for a rule without slopes."""
    if rule.slopes_H is None:
        return None
    places_C = torch.arange(num_places, device=positions_RQ1.device)
    distances_RQC = (places_C - positions_RQ1).float()
    slopes_KG11 = rule.slopes_H.float().view(num_kv_heads, -1, 1, 1)
    return (slopes_KG11 * distances_RQC[:, None, None]).flatten(2, 3)


def _attend(
    query_RKQD: torch.Tensor,
    key_RKCD: torch.Tensor,
    value_RKCE: torch.Tensor,
    mask: torch.Tensor,
    sinks_KQ1: torch.Tensor | None,
    losses_RKQC: torch.Tensor | None,
    rule: AttentionRule,
) -> torch.Tensor:
    """Return the attended values `[R, K, Q, E]`; `mask` is bool and broadcasts to `[R, K, Q, C]`."""
    if rule.softcap is None and sinks_KQ1 is None and losses_RKQC is None:
        mask = mask.expand(query_RKQD.shape[0], 1, query_RKQD.shape[2], key_RKCD.shape[2])
        return scaled_dot_product_attention(query_RKQD, key_RKCD, value_RKCE, attn_mask=mask, scale=rule.scaling)
    scores = torch.matmul(query_RKQD, key_RKCD.transpose(2, 3)).float() * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if losses_RKQC is not None:
        scores = scores + losses_RKQC
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks_KQ1 is None:
        weights = scores.softmax(dim=-1)
    else:
        sinks = sinks_KQ1.float().expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    return torch.matmul(weights.to(value_RKCE.dtype), value_RKCE)
