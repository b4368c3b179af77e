"""One read of rows of scores: the best id, whether all scores are finite, and the normaliser.

A row of a large vocabulary is cut into parts, so that few rows keep all multiprocessors busy. `scan_parts` reads the
scores, and `merge_parts` puts the parts of a row together.
"""

# N rows, V vocabulary, P parts of a row

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["vocab_size"])
def scan_parts(
    scores,  # [N, V] float32, with any stride of rows
    best_scores,  # [N, P] float32: NaN where the part holds a NaN
    best_ids,  # [N, P] int32: the first id with the best score
    lowest_scores,  # [N, P] float32
    sums,  # [N, P] float32: sum of the exponentials of the scores minus the best score
    row_stride,
    vocab_size,
    IDS: tl.constexpr,  # ids of a part, a power of two
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    ids = part * IDS + tl.arange(0, IDS)
    is_id = ids < vocab_size
    scores_V = tl.load(scores + row * row_stride + ids, mask=is_id, other=float("-inf"))
    holds_nan = tl.sum(((scores_V != scores_V) & is_id).to(tl.int32), axis=0) > 0
    best = tl.max(scores_V, axis=0)
    is_best = (scores_V == best) & is_id
    first = tl.min(tl.where(is_best, ids, vocab_size - 1), axis=0)
    lowest = tl.min(tl.where(is_id, scores_V, float("inf")), axis=0)
    base = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(tl.where(is_id, tl.exp(scores_V - base), 0.0), axis=0)
    at = row * tl.num_programs(1) + part
    tl.store(best_scores + at, tl.where(holds_nan, float("nan"), best))
    tl.store(best_ids + at, first)
    tl.store(lowest_scores + at, lowest)
    tl.store(sums + at, total)


@triton.jit(do_not_specialize=["num_parts"])
def merge_parts(
    best_scores,  # [N, P] float32
    best_ids,  # [N, P] int32
    lowest_scores,  # [N, P] float32
    sums,  # [N, P] float32
    best,  # [N] int64
    not_finite,  # [N] bool
    log_mass,  # [N] float32
    num_parts,
    PARTS: tl.constexpr,  # the power of two that is at least P
):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, PARTS)
    is_part = parts < num_parts
    at = row * num_parts + parts
    best_P = tl.load(best_scores + at, mask=is_part, other=float("-inf"))
    lowest_P = tl.load(lowest_scores + at, mask=is_part, other=float("inf"))
    ids_P = tl.load(best_ids + at, mask=is_part, other=0)
    sums_P = tl.load(sums + at, mask=is_part, other=0.0)
    holds_nan = tl.sum((best_P != best_P).to(tl.int32), axis=0) > 0
    highest = tl.max(best_P, axis=0)
    lowest = tl.min(lowest_P, axis=0)
    first = tl.min(tl.where((best_P == highest) & is_part, ids_P, 2147483647), axis=0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(sums_P * tl.exp(tl.where(is_part, best_P, float("-inf")) - base), axis=0)
    is_infinite = (highest == float("inf")) | (lowest == float("-inf"))
    tl.store(best + row, tl.where(holds_nan, 0, first).to(tl.int64))
    tl.store(not_finite + row, holds_nan | is_infinite)
    tl.store(log_mass + row, tl.log(total) + base)
