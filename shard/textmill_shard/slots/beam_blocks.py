"""The blocks of a search by beams: which block holds which tokens of which sequence.

Sequences that continue one sequence share its full blocks. A block that is not full belongs to one sequence, so a
further sequence gets a copy of it. The full blocks of the prompt belong to all sequences.
"""

# W sequences, B blocks of one sequence

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from textmill_shard.slots.plan import Admit


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """The first places of a block that a sequence needs for itself."""

    source_block: int
    target_block: int
    num_places: int


def num_search_blocks(admit: Admit, *, block_size: int) -> int:
    """Return the number of blocks of a search: the full blocks of the prompt, and the further ones of each sequence.

    Nothing is computed from the last token of a sequence, so this token needs no place.
    """
    assert admit.beams is not None
    num_full = len(admit.prompt_ids) // block_size
    num_places = len(admit.prompt_ids) + admit.max_new_tokens - 1
    return num_full + admit.beams.num_beams * (-(-num_places // block_size) - num_full)


class BeamBlocks:
    """Owner of the blocks of one search, from the end of its prompt on. The table of one slot holds all of them."""

    def __init__(self, admit: Admit, *, block_size: int) -> None:
        assert admit.beams is not None
        num_beams, num_prompt = admit.beams.num_beams, len(admit.prompt_ids)
        self._block_size = block_size
        self._num_shared = num_prompt // block_size
        num_wide = -(-(num_prompt + admit.max_new_tokens - 1) // block_size)
        self.tables_WB: npt.NDArray[np.int32] = np.zeros((num_beams, num_wide), dtype=np.int32)
        self.tables_WB[:, : self._num_shared] = admit.block_ids[: self._num_shared]
        own_blocks = admit.block_ids[self._num_shared :].tolist()
        self._num_holders = dict.fromkeys(own_blocks, 0)
        if num_prompt % block_size:  # the prompt was written with the first blocks of the table
            self.tables_WB[:, self._num_shared] = own_blocks[0]
            self._num_holders[own_blocks[0]] = num_beams
        self._free = [block for block in reversed(own_blocks) if not self._num_holders[block]]

    def fork(self, parents_W: Sequence[int], num_computed: int) -> list[BlockCopy]:
        """Let sequence w continue the sequence `parents_W[w]`, of which `num_computed` tokens are stored.

        Returns the copies to make before the next token of each sequence, number `num_computed`, is stored.
        """
        size = self._block_size
        first, num_used = self._num_shared, -(-num_computed // size)
        tables_WB = self.tables_WB[list(parents_W)]
        for block in tables_WB[:, first:num_used].flatten().tolist():
            self._num_holders[block] += 1
        for block in self.tables_WB[:, first:num_used].flatten().tolist():
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                self._free.append(block)
        self.tables_WB = tables_WB
        copies = []
        num_full, num_places = divmod(num_computed, size)
        for row in range(len(parents_W)):
            block = int(tables_WB[row, num_full])
            if num_places and self._num_holders[block] == 1:
                continue  # nobody else continues this block
            own = self._free.pop()
            self._num_holders[own] = 1
            tables_WB[row, num_full] = own
            if num_places:
                self._num_holders[block] -= 1
                copies.append(BlockCopy(block, own, num_places))
        return copies
