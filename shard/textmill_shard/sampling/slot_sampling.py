"""What the sampler remembers of one slot: a function of its parameters, prompt ids and output ids (rule 18).

E entries: the distinct token ids of a text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from textmill_shard.slots.sampling_params import SamplingParams

MIN_CAPACITY = 64  # entries that a fresh table has room for


class TokenCounts:
    """The distinct ids of a growing text and how often each occurs."""

    __slots__ = ("_counts", "_ids", "_places", "_size")

    def __init__(self, token_ids: Sequence[int]) -> None:
        ids, counts = np.unique(np.asarray(token_ids, dtype=np.int64), return_counts=True)
        self._size = len(ids)
        capacity = max(MIN_CAPACITY, 2 * self._size)
        self._ids = np.zeros(capacity, dtype=np.int64)
        self._counts = np.zeros(capacity, dtype=np.float32)
        self._ids[: self._size] = ids
        self._counts[: self._size] = counts
        self._places = {int(token): place for place, token in enumerate(ids)}

    def add(self, token: int) -> None:
        """Count one more occurrence."""
        place = self._places.get(token)
        if place is None:
            place = self._size
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._places[token] = place
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1

    @property
    def ids_E(self) -> NDArray[np.int64]:
        """[E] distinct ids in order of first sight; a view."""
        return self._ids[: self._size]

    @property
    def counts_E(self) -> NDArray[np.float32]:
        """[E] occurrences, parallel to `ids_E`; a view."""
        return self._counts[: self._size]


class SlotSampling:
    """Sampling state of one slot. The step loop calls `append` with each token that counts; nobody else writes.

    Tables are kept only where a parameter reads them: `seen` (prompt and output) for the repetition penalty, `output`
    for presence and frequency.
    """

    __slots__ = ("allowed_V", "last_token", "num_output_tokens", "output", "params", "seen", "takes_best")

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], output_ids: Sequence[int] = ()) -> None:
        self.params = params
        self.num_output_tokens = len(output_ids)
        self.last_token = [*prompt_ids[-1:], *output_ids[-1:]][-1]  # the watermark's key
        self.allowed_V: NDArray[np.bool_] | None = None  # ids that the grammar lets follow; set before each draw
        self.seen: TokenCounts | None = None
        self.output: TokenCounts | None = None
        if params.repetition_penalty != 1.0:
            self.seen = TokenCounts([*prompt_ids, *output_ids])
        if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            self.output = TokenCounts(output_ids)
        # The best id of the model's own scores, while no grammar stands in the way; no list of alternatives.
        self.takes_best = (
            not (params.do_sample or params.logit_bias or params.min_new_tokens or params.watermark)
            and not params.top_n_tokens
            and self.seen is None
            and self.output is None
        )

    def append(self, token: int) -> None:
        """Take in the token that was sampled last; the next draw is for the position after it."""
        self.num_output_tokens += 1
        self.last_token = token
        self.allowed_V = None
        if self.seen is not None:
            self.seen.add(token)
        if self.output is not None:
            self.output.add(token)
