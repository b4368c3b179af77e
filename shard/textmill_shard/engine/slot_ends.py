"""Frees the slots of requests that the shard itself ends."""

import logging
from collections.abc import Sequence

from textmill_shard.engine.entry_draft import EntryDraft
from textmill_shard.engine.step_executor import StepExecutor

log = logging.getLogger(__name__)


class SlotEnds:
    """Frees slots on this rank, and notes them for the next entry to the other ranks (rule 24)."""

    def __init__(self, executor: StepExecutor, entry: EntryDraft) -> None:
        self._executor = executor
        self._entry = entry

    def end(self, slots: Sequence[int], *, step: int) -> None:
        """Free slots whose requests have finished or failed in a step of this number."""
        if slots and log.isEnabledFor(logging.DEBUG):
            for slot in slots:
                request_id = int(self._executor.table.request_ids[slot])
                log.debug("request ends", extra={"request_id": request_id, "slot": slot, "step": step})
        self._executor.end(slots)
        self._entry.add_ended(slots)
