"""The reference backend agrees with a softmax that is written out for one query at a time."""

import math

import pytest
import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

NUM_HEADS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM, BLOCK_SIZE = 6, 2, 8, 5, 4
NUM_BLOCKS = 40
# Positions whose tokens see each other, in the sequence of this length.
SPAN, SPAN_LENGTH = range(13, 17), 19
SINKS = torch.linspace(-1.0, 2.0, NUM_HEADS)
# (tokens of this step, tokens in all): decodes and chunks, with and without a past.
SEQUENCES = ((1, 9), (3, 3), (1, 30), (7, 19), (1, 1))

RULES = {
    "causal": AttentionRule(scaling=0.3),
    "window": AttentionRule(scaling=0.3, window_tokens=5),
    "chunk": AttentionRule(scaling=0.3, chunk_tokens=6),
    "spans": AttentionRule(scaling=0.3, sees_spans=True),
    "softcap": AttentionRule(scaling=0.9, softcap=0.7),
    "sinks": AttentionRule(scaling=0.3, sinks_H=SINKS),
    "all": AttentionRule(scaling=0.9, window_tokens=4, softcap=0.7, sinks_H=SINKS),
}


def by_hand(
    query_HD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule, last: int
) -> torch.Tensor:
    """Attend with the query at position `last` to a context `[C, K, D]`, `[C, K, E]`, and return `[H, E]`."""
    end = SPAN.stop if rule.sees_spans and len(keys) == SPAN_LENGTH and last in SPAN else last + 1
    seen = [
        place
        for place in range(end)
        if (rule.window_tokens is None or last - place < rule.window_tokens)
        and (rule.chunk_tokens is None or place // rule.chunk_tokens == last // rule.chunk_tokens)
    ]
    rows = []
    for head in range(NUM_HEADS):
        kv_head = head * NUM_KV_HEADS // NUM_HEADS
        scores = [float(query_HD[head] @ keys[place, kv_head]) * rule.scaling for place in seen]
        if rule.softcap is not None:
            scores = [rule.softcap * math.tanh(score / rule.softcap) for score in scores]
        total = sum(math.exp(score) for score in scores)
        if rule.sinks_H is not None:
            total += math.exp(float(rule.sinks_H[head]))
        rows.append(
            sum(math.exp(score) / total * values[place, kv_head] for score, place in zip(scores, seen, strict=True))
        )
    return torch.stack([torch.as_tensor(row) for row in rows])


def _span_ends(start: int, stop: int) -> torch.Tensor:
    return torch.tensor([SPAN.stop * (position in SPAN) for position in range(start, stop)], dtype=torch.int32)


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_query_sees_what_its_rule_lets_it(name: str) -> None:
    rule, random = RULES[name], torch.Generator().manual_seed(0)
    key_pool = torch.full((NUM_BLOCKS + 1, BLOCK_SIZE, NUM_KV_HEADS, KEY_DIM), float("nan"))
    value_pool = torch.full((NUM_BLOCKS + 1, BLOCK_SIZE, NUM_KV_HEADS, VALUE_DIM), float("nan"))
    free_blocks = torch.randperm(NUM_BLOCKS, generator=random).tolist()
    tables, contexts = [], []
    for _, length in SEQUENCES:
        table = [free_blocks.pop() for _ in range(-(-length // BLOCK_SIZE))]
        keys = torch.randn(length, NUM_KV_HEADS, KEY_DIM, generator=random)
        values = torch.randn(length, NUM_KV_HEADS, VALUE_DIM, generator=random)
        for place in range(length):
            key_pool[table[place // BLOCK_SIZE], place % BLOCK_SIZE] = keys[place]
            value_pool[table[place // BLOCK_SIZE], place % BLOCK_SIZE] = values[place]
        tables.append(table)
        contexts.append((keys, values))
    rows = [
        SyntheticRow(
            ids_n=torch.zeros(count, dtype=torch.int64),
            blocks=table,
            start=length - count,
            span_ends_n=_span_ends(length - count, length) if length == SPAN_LENGTH else None,
        )
        for table, (count, length) in zip(tables, SEQUENCES, strict=True)
    ]
    batch = synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=NUM_BLOCKS, num_padding=2)
    num_tokens = len(batch.input_ids_T)
    query_THD = torch.randn(num_tokens, NUM_HEADS, KEY_DIM, generator=random)
    step = ReferenceAttention().prepare(batch, block_size=BLOCK_SIZE)
    out_THE = step.attend(query_THD, key_pool, value_pool, rule)

    assert out_THE.shape == (num_tokens, NUM_HEADS, VALUE_DIM)
    row = 0
    for (num_queries, length), (keys, values) in zip(SEQUENCES, contexts, strict=True):
        for seen in range(length - num_queries + 1, length + 1):
            expected = by_hand(query_THD[row], keys, values, rule, seen - 1)
            torch.testing.assert_close(out_THE[row], expected, rtol=1e-5, atol=1e-5)
            row += 1
