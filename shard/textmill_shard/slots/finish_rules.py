"""Whether a sampled token ends its request: length, EOS, stop ids. The router looks for stop strings."""

# N rows that sampled

from collections.abc import Sequence

import numpy as np

from textmill_shard.slots.plan import FLAG_EOS, FLAG_FINISHED, FLAG_LENGTH, FLAG_STOP_ID, IdArray
from textmill_shard.slots.slot_table import SlotTable


class FinishRules:
    """The rules by which a token ends a request. The EOS ids are the model's; all else stands in the request's row."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_set = frozenset(eos_token_ids)
        self._eos_ids = np.array(sorted(eos_token_ids), dtype=np.int64)

    def flags(self, table: SlotTable, slots_N: IdArray, num_tokens_N: IdArray, tokens_N: IdArray) -> IdArray:
        """Return the flags of each row as on the wire; 0 means that the request goes on.

        `num_tokens_N` counts the tokens of each request up to its token of this step.

        A token may end its request in several ways at once, and then all these flags are set. EOS and stop ids do not
        end a request before `min_new_tokens`. The sampler has masked them, so the test here only guards against a wrong
        mask.
        """
        is_long_N = num_tokens_N >= table.max_tokens[slots_N]
        may_be_eos = not self._eos_set.isdisjoint(tokens_N.tolist())
        if not (may_be_eos or is_long_N.any() or table.has_stop_ids[slots_N].any()):
            return np.zeros(len(slots_N), dtype=np.int64)
        may_end_N = num_tokens_N > table.min_tokens[slots_N]
        is_eos_N = np.isin(tokens_N, self._eos_ids) & ~table.ignores_eos[slots_N] & may_end_N
        is_stop_N = np.zeros(len(slots_N), dtype=bool)
        for row in np.flatnonzero(table.has_stop_ids[slots_N] & may_end_N).tolist():
            is_stop_N[row] = int(tokens_N[row]) in table.admit_of(int(slots_N[row])).stop_ids
        flags_N = is_long_N * FLAG_LENGTH + is_eos_N * FLAG_EOS + is_stop_N * FLAG_STOP_ID
        return np.where(flags_N > 0, flags_N | FLAG_FINISHED, 0).astype(np.int64)

    def ending_ids(self, stop_ids: Sequence[int], *, ignore_eos: bool) -> tuple[int, ...]:
        """Return the ids that end a request, which are masked before `min_new_tokens`."""
        eos_ids = () if ignore_eos else tuple(self._eos_ids.tolist())
        return tuple(dict.fromkeys((*eos_ids, *stop_ids)))
