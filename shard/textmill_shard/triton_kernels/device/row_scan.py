"""The first pass over rows of scores: what requests change, best id, normalisers, candidates, in one read of the row.

A row of a large vocabulary is cut into parts, so that few rows keep all multiprocessors busy. `scan_parts` reads the
logits of a part once. Where requests change scores, `scan_parts` writes the part, changes the few scores that the lists
of the request name, and looks at the part again, which then lies in the nearest cache. `merge_parts` puts the parts of
a row together.

Which changes a row asks for is told by numbers, and not by variants of the kernel: a variant is compiled at its first
launch, for which all requests would wait. A change for which a row does not ask costs some reads of one number.

The C best scores of a row lie among the C best of its parts, so `scan_parts` writes the C best of each part, and a
selection among these few finds those of the row. A candidate is one number of 64 bits, a key, which is smaller where
the score is higher, and between equal scores where the id is smaller: the score stands in the upper half, and the id in
the lower half.
"""

# N rows, V vocabulary, P parts of a row, S slots, E entries of the longest list, C candidates

import triton
import triton.language as tl


@triton.jit
def slot_of(slots, row):
    # -1: the row does not ask. The state of slot 0 is then read, and nothing is done with it.
    slot = tl.load(slots + row)
    return tl.maximum(slot, 0), slot >= 0


@triton.jit
def best_of(scores_V, ids, is_id, last_id):
    best = tl.max(scores_V, axis=0)
    return best, tl.min(tl.where((scores_V == best) & is_id, ids, last_id), axis=0)


@triton.jit
def write_candidates(keys, scores_V, ids, is_id, num_candidates):
    """Write the keys of the best scores of a part, in the order of their ids.

    Places behind the last id have the lowest number and the highest ids, so that their keys stand behind all others.
    """
    bits_V = (scores_V + 0.0).to(tl.int32, bitcast=True)  # the sum makes of -0.0 the equal score 0.0
    # Numbers in the order of the scores: the bits of a negative score fall where the score rises.
    numbers_V = tl.where(is_id, bits_V ^ ((bits_V >> 31) & 0x7FFFFFFF), -2147483648)
    # The smallest number of a candidate, bit by bit from the highest: the largest that as many numbers reach.
    lowest = tl.full((1,), -2147483648, tl.int32)
    bit = tl.full((1,), 1, tl.int32)
    for place in range(32):
        trial = lowest ^ (bit << (31 - place))
        num_reaching = tl.sum((numbers_V >= trial).to(tl.int32), axis=0)
        lowest = tl.where(num_reaching >= num_candidates, trial, lowest)
    is_above = numbers_V > lowest
    is_lowest = numbers_V == lowest
    num_lowest = num_candidates - tl.sum(is_above.to(tl.int32), axis=0)
    is_chosen = is_above | (is_lowest & (tl.cumsum(is_lowest.to(tl.int32), axis=0) <= num_lowest))
    places_V = tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
    keys_V = ((~numbers_V).to(tl.int64) << 32) | ids.to(tl.int64)
    tl.store(keys + places_V, keys_V, mask=is_chosen)


@triton.jit(
    do_not_specialize=[
        "vocab_size",
        "ids_stride",
        "count_ids_stride",
        "counts_stride",
        "bias_ids_stride",
        "amounts_stride",
        "num_candidates",
    ]
)
def scan_parts(
    logits,  # [N, V] float32, with any stride of rows
    scores,  # [N, V] float32, contiguous: the changed logits; None without changes
    best_scores,  # [N, P] float32: of the changed logits
    best_ids,  # [N, P] int32: the first id with the best score
    tempered_sums,  # [N, P] float32: sum of exp((score - best score) / temperature); None without temperatures
    highest_logits,  # [N, P] float32: NaN where the part holds a NaN
    lowest_logits,  # [N, P] float32
    sums,  # [N, P] float32: sum of the exponentials of the logits minus the highest
    candidates,  # [N, P, C] int64: keys of the best changed logits; None without candidates
    seen_slots,  # [N] int64, -1 for rows without a repetition penalty; None without changes, as all up to `forbidden`
    seen_ids,  # [S, E] int64, distinct
    num_seen,  # [S] int64
    penalties,  # [S] float32
    count_slots,  # [N] int64, likewise for presence and frequency penalties
    count_ids,  # [S, E] int64, distinct
    num_counted,  # [S] int64
    counts,  # [S, E] float32
    presence,  # [S] float32
    frequency,  # [S] float32
    bias_slots,  # [N] int64, likewise for biases
    bias_ids,  # [S, E] int64, distinct
    num_biases,  # [S] int64
    amounts,  # [S, E] float32
    mask_slots,  # [N] int64, likewise for masks
    forbidden,  # [S, V] bool
    temperature_slots,  # [N] int64, likewise for temperatures
    temperatures,  # [S] float32
    row_stride,
    vocab_size,
    ids_stride,
    count_ids_stride,
    counts_stride,
    bias_ids_stride,
    amounts_stride,
    num_candidates,  # of a row, at most IDS and at most V
    IDS: tl.constexpr,  # ids of a part, a power of two
    ENTRIES: tl.constexpr,  # entries of a list that are read at a time
    HAS_CHANGES: tl.constexpr,  # whether a row asks for one of the four changes
    HAS_TEMPERATURE: tl.constexpr,
    HAS_CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    first_id = part * IDS
    ids = first_id + tl.arange(0, IDS)
    is_id = ids < vocab_size
    last_id = vocab_size - 1
    at = row * tl.num_programs(1) + part
    scores_V = tl.load(logits + row * row_stride + ids, mask=is_id, other=float("-inf"))

    holds_nan = tl.sum(((scores_V != scores_V) & is_id).to(tl.int32), axis=0) > 0
    best, best_id = best_of(scores_V, ids, is_id, last_id)
    base = tl.where(best == float("-inf"), 0.0, best)
    tl.store(highest_logits + at, tl.where(holds_nan, float("nan"), best))
    tl.store(lowest_logits + at, tl.min(tl.where(is_id, scores_V, float("inf")), axis=0))
    tl.store(sums + at, tl.sum(tl.where(is_id, tl.exp(scores_V - base), 0.0), axis=0))

    if HAS_CHANGES:
        score_row = scores + row * vocab_size
        # What is impossible stays so, whatever is added or multiplied later.
        slot, asks = slot_of(mask_slots, row)
        num_masked = tl.where(asks, vocab_size, 0)
        is_forbidden = tl.load(forbidden + slot * vocab_size + ids, mask=ids < num_masked, other=0) != 0
        tl.store(score_row + ids, tl.where(is_forbidden, float("-inf"), scores_V), mask=is_id)
        entries = tl.arange(0, ENTRIES)
        # Barriers stand between steps in which one thread may read what another one has written.
        tl.debug_barrier()
        slot, asks = slot_of(seen_slots, row)
        penalty = tl.load(penalties + slot)
        num_ids = tl.where(asks, tl.load(num_seen + slot), 0)
        for start in range(0, num_ids, ENTRIES):
            is_entry = start + entries < num_ids
            listed = tl.load(seen_ids + slot * ids_stride + start + entries, mask=is_entry, other=-1)
            is_mine = is_entry & (listed >= first_id) & (listed < first_id + IDS) & (listed < vocab_size)
            score_E = tl.load(score_row + listed, mask=is_mine, other=0.0)
            score_E = tl.where(score_E < 0.0, score_E * penalty, tl.div_rn(score_E, penalty))
            tl.store(score_row + listed, score_E, mask=is_mine)
        tl.debug_barrier()
        slot, asks = slot_of(count_slots, row)
        per_id, per_count = tl.load(presence + slot), tl.load(frequency + slot)
        num_ids = tl.where(asks, tl.load(num_counted + slot), 0)
        for start in range(0, num_ids, ENTRIES):
            is_entry = start + entries < num_ids
            listed = tl.load(count_ids + slot * count_ids_stride + start + entries, mask=is_entry, other=-1)
            count_E = tl.load(counts + slot * counts_stride + start + entries, mask=is_entry, other=0.0)
            is_mine = (count_E > 0.0) & (listed >= first_id) & (listed < first_id + IDS) & (listed < vocab_size)
            score_E = tl.load(score_row + listed, mask=is_mine, other=0.0)
            tl.store(score_row + listed, score_E - (per_id + per_count * count_E), mask=is_mine)
        tl.debug_barrier()
        slot, asks = slot_of(bias_slots, row)
        num_ids = tl.where(asks, tl.load(num_biases + slot), 0)
        for start in range(0, num_ids, ENTRIES):
            is_entry = start + entries < num_ids
            listed = tl.load(bias_ids + slot * bias_ids_stride + start + entries, mask=is_entry, other=-1)
            amount_E = tl.load(amounts + slot * amounts_stride + start + entries, mask=is_entry, other=0.0)
            is_mine = is_entry & (listed >= first_id) & (listed < first_id + IDS) & (listed < vocab_size)
            score_E = tl.load(score_row + listed, mask=is_mine, other=0.0)
            tl.store(score_row + listed, score_E + amount_E, mask=is_mine)
        tl.debug_barrier()
        scores_V = tl.load(score_row + ids, mask=is_id, other=float("-inf"))
        best, best_id = best_of(scores_V, ids, is_id, last_id)
        base = tl.where(best == float("-inf"), 0.0, best)
    tl.store(best_scores + at, best)
    tl.store(best_ids + at, best_id)
    if HAS_TEMPERATURE:
        slot, asks = slot_of(temperature_slots, row)
        temperature = tl.where(asks, tl.load(temperatures + slot), 1.0)
        weights_V = tl.exp((scores_V - base) / temperature)
        tl.store(tempered_sums + at, tl.sum(tl.where(is_id, weights_V, 0.0), axis=0))
    if HAS_CANDIDATES:
        write_candidates(candidates + at * num_candidates, scores_V, ids, is_id, num_candidates)


@triton.jit(do_not_specialize=["num_parts"])
def merge_parts(
    best_scores,  # [N, P] float32
    best_ids,  # [N, P] int32
    tempered_sums,  # [N, P] float32; None without temperatures
    highest_logits,  # [N, P] float32
    lowest_logits,  # [N, P] float32
    sums,  # [N, P] float32
    best,  # [N] int64: of the changed scores
    not_finite,  # [N] bool: of the logits
    log_mass,  # [N] float32: of the logits
    tempered_mass,  # [N] float32: log of the sum of exp((score - best score) / temperature); None without temperatures
    temperature_slots,  # [N] int64, -1: no temperature; None without temperatures
    temperatures,  # [S] float32
    num_parts,
    PARTS: tl.constexpr,  # the power of two that is at least P
    HAS_TEMPERATURE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, PARTS)
    is_part = parts < num_parts
    at = row * num_parts + parts
    logits_P = tl.load(highest_logits + at, mask=is_part, other=float("-inf"))
    lowest_P = tl.load(lowest_logits + at, mask=is_part, other=float("inf"))
    sums_P = tl.load(sums + at, mask=is_part, other=0.0)
    holds_nan = tl.sum((logits_P != logits_P).to(tl.int32), axis=0) > 0
    highest = tl.max(logits_P, axis=0)
    lowest = tl.min(lowest_P, axis=0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(sums_P * tl.exp(tl.where(is_part, logits_P, float("-inf")) - base), axis=0)
    is_infinite = (highest == float("inf")) | (lowest == float("-inf"))
    tl.store(not_finite + row, holds_nan | is_infinite)
    tl.store(log_mass + row, tl.log(total) + base)

    best_P = tl.load(best_scores + at, mask=is_part, other=float("-inf"))
    ids_P = tl.load(best_ids + at, mask=is_part, other=0)
    highest = tl.max(best_P, axis=0)
    first = tl.min(tl.where((best_P == highest) & is_part, ids_P, 2147483647), axis=0)
    tl.store(best + row, tl.where(holds_nan, 0, first).to(tl.int64))
    if HAS_TEMPERATURE:
        slot, asks = slot_of(temperature_slots, row)
        temperature = tl.where(asks, tl.load(temperatures + slot), 1.0)
        tempered_P = tl.load(tempered_sums + at, mask=is_part, other=0.0)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        # A part without a possible id has the sum 0, or sums of exponentials of minus infinity, which are 0.
        shrinks_P = tl.exp(tl.where(is_part, best_P - base, float("-inf")) / temperature)
        tl.store(tempered_mass + row, tl.log(tl.sum(tempered_P * shrinks_P, axis=0)))
