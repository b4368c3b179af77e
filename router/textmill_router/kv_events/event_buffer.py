"""Collects the changes of one replica's prefix index, and hands them on once for each turn of the event loop."""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textmill_router.kv_events.messages import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event
from textmill_router.request import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFacts:
    """The facts that all events of a replica share. `medium` is GPU or CPU."""

    block_size: int
    medium: str
    replica: int | None = None
    rope_border: int = 0  # of models with two rotary tables, see `GenerationRequest.takes_long_rope`


class EventBuffer:
    """The `CacheWatcher` of one replica. `publish` takes the events of a turn.

    Blocks of callers whose prefixes are kept apart are left out: a router between machines cannot know who may reuse
    them, and their tokens are nobody else's.
    """

    def __init__(self, facts: BlockFacts, publish: Callable[[Batch], None]) -> None:
        self._facts = facts
        self._publish = publish
        self._events: list[Event] = []
        self._told: set[bytes] = set()  # hashes of the blocks that are stored and were told

    def on_stored(
        self, request: GenerationRequest, parent: bytes | None, digests: Sequence[bytes], packed_ids: bytes
    ) -> None:
        """Note a run of blocks."""
        if request.cache_salt:
            return
        self._told.update(digests)
        facts = self._facts
        is_long = request.takes_long_rope(facts.rope_border)
        self._add(
            BlockStored(
                block_hashes=list(digests),
                parent_block_hash=parent,
                token_ids=array("I", packed_ids).tolist(),
                block_size=facts.block_size,
                medium=facts.medium,
                lora_name=request.adapter_name or None,
                extra_keys=[["long rope"]] * len(digests) if is_long else None,
            )
        )

    def on_removed(self, digest: bytes) -> None:
        """Note that a block is gone."""
        if digest not in self._told:
            return
        self._told.remove(digest)
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            last.block_hashes.append(digest)
        else:
            self._add(BlockRemoved(block_hashes=[digest], medium=self._facts.medium))

    def on_cleared(self) -> None:
        """Note that the index is empty. Events of this turn that came before say nothing any more."""
        self._told.clear()
        is_due = bool(self._events)
        self._events.clear()
        self._events.append(AllBlocksCleared())
        if not is_due:
            self._hand_on_soon()

    def _add(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) == 1:
            self._hand_on_soon()

    def _hand_on_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._hand_on)

    def _hand_on(self) -> None:
        events, self._events = self._events, []
        self._publish(Batch(time.time(), events, self._facts.replica))
