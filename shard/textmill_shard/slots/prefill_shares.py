"""How the prefill tokens of a step are shared among several callers: by deficit round robin over tokens (rule 16)."""

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import TypeAlias

FitChunk: TypeAlias = Callable[[int, int, int, int], int]
"""From row, tokens that the row has in this step already, tokens wanted and tokens free to the tokens of its chunk."""


class PrefillShares:
    """What each caller with a prefill has had of the steps so far, in tokens divided by the caller's weight.

    Every rank has such an object, hands in the same numbers step after step, and so gets the same shares. A caller who
    begins to prefill has had as much as the one who has had least, and a caller without a prefill is forgotten.
    """

    def __init__(self) -> None:
        self._used: dict[int, float] = {}

    def clear(self) -> None:
        """Forget all callers, because one of them has the steps for itself."""
        self._used.clear()

    def give(
        self,
        callers: Sequence[int],
        weights: Sequence[float],
        num_open: Sequence[int],
        *,
        num_free: int,
        max_chunk_tokens: int,
        fit: FitChunk | None = None,
    ) -> list[int]:
        """Return the tokens of each prefill in the next step. The sequences are parallel, in the order of admission.

        `num_open` are the tokens that a prefill can compute. `fit` is given where a prefill has tokens that must come
        in one step, if any of them come. Of `num_free` tokens each next chunk goes to the caller who has had least by
        weight, of equal callers to the one whose first prefill came first, and there to the prefill that has fewest
        chunks of this step.
        """
        counts = [0] * len(callers)
        lines: dict[int, deque[int]] = {}
        for row, caller in enumerate(callers):
            line = lines.setdefault(caller, deque())
            if num_open[row] > 0:
                line.append(row)
        had_least = min((used for caller, used in self._used.items() if caller in lines), default=0.0)
        # Counted from the least on, so that the numbers stay small.
        self._used = {caller: self._used.get(caller, had_least) - had_least for caller in lines}
        turns = [(self._used[caller], line[0], caller) for caller, line in lines.items() if line]
        heapify(turns)
        while num_free and turns:
            used, first_row, caller = heappop(turns)
            line = lines[caller]
            row = line.popleft()
            count = min(max_chunk_tokens, num_open[row] - counts[row], num_free)
            if fit is not None:
                count = fit(row, counts[row], count, num_free)
            if count:
                counts[row] += count
                num_free -= count
                used += count / weights[row]
                self._used[caller] = used
                if counts[row] < num_open[row]:
                    line.append(row)
            if line:
                heappush(turns, (used, first_row, caller))
        return counts
