"""A vocabulary that the ranks of a model share: each rank computes the logits of some token ids."""

# N rows of logits, V vocabulary, P ranks, W words of 32 bits

from itertools import accumulate

import torch

from textmill_shard.distributed.parallel import TensorParallel


class SharedVocabulary:
    """Which token ids this rank has, and the exchanges of the ranks about their parts of the logits.

    All ranks call each method with equal arguments but their own part.
    """

    def __init__(self, parallel: TensorParallel, sizes: tuple[int, ...]) -> None:
        """`sizes` has the number of token ids of each rank. Each rank has at least one."""
        self._parallel = parallel
        self._sizes = sizes
        self.first_id = tuple(accumulate(sizes[:-1], initial=0))[parallel.rank]  # of this rank
        self.num_ids = sizes[parallel.rank]  # of this rank
        self.vocab_size = sum(sizes)
        self.most_ids = max(sizes)  # of a rank

    def join_rows(self, part_NV: torch.Tensor) -> torch.Tensor:
        """Return whole rows [N, V] of the ranks' parts, laid side by side."""
        if not part_NV.shape[0]:
            return part_NV.new_empty(0, self.vocab_size)
        return self._parallel.all_gather(part_NV, self._sizes)

    def gather(self, words_W: torch.Tensor) -> torch.Tensor:
        """Return what each rank brings, [P, W] int32. All ranks bring equally many words."""
        return self._parallel.gather(words_W)
