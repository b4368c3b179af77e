"""Keeps the distinct ids of the text of each slot, on the device.

S slots, G rows, E entries: the distinct ids of the longest text.
"""

import torch
from torch import Tensor

from textmill_shard.model.score_changes import IdLists
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.slots.plan import IdArray

NO_ID = -1
RECOUNT_APPENDS = 256  # appends between two reads of the true sizes


class TokenSet:
    """A list of distinct ids per slot.

    The filling behind the end of a list is the first id that `admit` wrote, or NO_ID if `admit` wrote none.
    """

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._num_ids_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._num_appends = 0

    def admit(self, slot: int, ids: IdArray) -> None:
        """Replace the list of a slot by some distinct ids."""
        self._ids.write(slot, ids, filling=int(ids[0]) if len(ids) else NO_ID)
        self._num_ids_S[slot] = len(ids)

    def width(self, rows: StageRows) -> int:
        """Return the number of entries of the longest list among some rows, or a number above that."""
        return int(self._ids.sizes_S[rows.on_host.slots_G].max())

    def ids(self, rows: StageRows) -> Tensor:
        """Return the lists of some rows, [G, E] int64."""
        return self._ids.cut(rows, self.width(rows))

    def lists(self) -> IdLists:
        """Return the lists of all slots."""
        return IdLists(self._ids.values_SE, self._num_ids_S)

    def append(self, rows: StageRows, tokens_G: Tensor) -> Tensor:
        """Take in one id for each row. Returns the places, [G] int64, where the ids stand in their lists.

        Only the device knows whether an id is new. The host needs the sizes to cut the lists that a step reads, so the
        host counts each id as new. On a CPU the host reads the true sizes once in RECOUNT_APPENDS calls. On a GPU the
        host would wait for them, and a list is cut at the length of the text at most.
        """
        sizes_S, slots_G = self._ids.sizes_S, rows.slots_G
        sizes_S[rows.on_host.slots_G] += 1
        self._ids.make_room(self.width(rows))
        is_known_G, places_G = (self.ids(rows) == tokens_G.unsqueeze(-1)).byte().max(-1)
        num_ids_G = self._num_ids_S[slots_G]
        places_G = places_G.where(is_known_G > 0, num_ids_G)
        self._ids.values_SE[slots_G, places_G] = tokens_G
        self._num_ids_S[slots_G] = num_ids_G + (1 - is_known_G)
        self._num_appends += 1
        if self._num_appends % RECOUNT_APPENDS == 0 and slots_G.device.type == "cpu":
            sizes_S[:] = self._num_ids_S.cpu().numpy()
        return places_G
