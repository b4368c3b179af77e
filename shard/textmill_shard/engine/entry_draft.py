"""Gathers what rank 0 has to tell the other ranks with its next entry (rule 24)."""

from collections.abc import Mapping, Sequence

import numpy as np

from textmill_shard.engine.apart_pass import ApartPass
from textmill_shard.engine.rank_channel import NO_REWINDS, AdapterOrder, RankEntry, Rewinds


class EntryDraft:
    """What has happened since the last entry. The thread of the step loop alone calls the draft."""

    def __init__(self) -> None:
        self._plans: list[bytes] = []
        self._ended_slots: list[int] = []
        self._rewinds = NO_REWINDS
        self._is_epoch_new = False

    def begin_epoch(self) -> None:
        """Forget the epoch before, and tell of the new one."""
        self._clear()
        self._is_epoch_new = True

    def add_plan(self, data: bytes) -> None:
        """Tell of a plan, as serialised, behind the plans before."""
        self._plans.append(data)

    def add_ended(self, slots: Sequence[int]) -> None:
        """Tell of slots whose requests rank 0 has ended."""
        self._ended_slots += slots

    def add_rewinds(self, rewinds: Rewinds) -> None:
        """Tell of rewinds, behind those before."""
        if not len(rewinds.slots):
            return
        before = self._rewinds
        self._rewinds = Rewinds(
            slots=np.concatenate([before.slots, rewinds.slots]),
            tokens=np.concatenate([before.tokens, rewinds.tokens]),
            is_launched=np.concatenate([before.is_launched, rewinds.is_launched]),
            output_ids=(*before.output_ids, *rewinds.output_ids),
        )

    def take(
        self,
        *,
        step: int,
        is_stop: bool,
        released_slots: Sequence[int],
        adapter_orders: tuple[AdapterOrder, ...],
        ready: Mapping[int, int],
        apart: ApartPass | None = None,
    ) -> RankEntry:
        """Return the entry, and begin the next draft. `ready` has the tokens that slots may compute, by slot."""
        entry = RankEntry(
            step=step,
            is_new_epoch=self._is_epoch_new,
            is_stop=is_stop,
            ended_slots=np.array(self._ended_slots, dtype=np.int64),
            plans=tuple(self._plans),
            released_slots=np.array(released_slots, dtype=np.int64),
            adapter_orders=adapter_orders,
            ready_slots=np.array([*ready], dtype=np.int64),
            ready_until=np.array([*ready.values()], dtype=np.int64),
            rewinds=self._rewinds,
            apart=apart,
        )
        self._clear()
        return entry

    def _clear(self) -> None:
        self._plans.clear()
        self._ended_slots.clear()
        self._rewinds = NO_REWINDS
        self._is_epoch_new = False
