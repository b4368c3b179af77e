"""Lets slots wait for the rows of their images, and runs the tower (rule 33). Only rank 0 has a desk.

On a GPU the tower runs between two steps, one image at a time. On a CPU it takes long, so it runs in a thread beside
the steps. A thread cannot be ended from outside. So a tower that does not come back fails the requests of its image,
and the shard ends when another image needs the tower, because only a new process has a new tower.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from textmill_shard.device import is_device_gone
from textmill_shard.engine.media_store import KeptItem, MediaStore
from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.model.media import MediaFacts, MediaFault, MediaRows
from textmill_shard.model.system_memory import free_device_memory
from textmill_shard.slots.plan import Admit, MediaSpan, SlotError, SlotErrorCode
from textmill_shard.slots.slot_table import NO_BOUND, SlotTable

log = logging.getLogger(__name__)

# Added to that of the process. The thread of the tower gets a quarter of a core that a step wants too, so that a step
# takes a third longer at most.
TOWER_NICENESS = 5
# The limit of the thread. A share of a core that steps leave, and attention, which grows with the square of an image,
# make an image take longer than its size and the image of the warm-up let expect.
TOWER_SLACK_S = 60.0
TOWER_FACTOR = 30.0
Encode = Callable[[Mapping[str, torch.Tensor]], MediaRows]


class TowerHangs(Exception):
    """The tower does not come back from an image, and another image needs the tower."""


@dataclass(slots=True)
class _Work:
    """The item that the thread computes."""

    digest: bytes
    limit_s: float
    due_s: float  # when the limit is over, on the clock of the desk
    is_late: bool = False


@dataclass(slots=True)
class _Seat:
    """A slot with spans that are not computed yet."""

    admit: Admit
    spans: list[MediaSpan]  # not computed yet, in order
    num_ready: int = 0  # of these, the first ones whose rows are there
    pins: dict[bytes, KeptItem] = field(default_factory=dict)  # of the spans that are not computed yet, by digest


@dataclass(frozen=True, slots=True)
class MediaTurn:
    """What changes between two steps."""

    ready: dict[int, int]  # by slot: tokens that may be computed from now on
    faults: tuple[SlotError, ...]


NOTHING = MediaTurn({}, ())


class MediaDesk:
    """`store` is for any thread. The thread of the step loop makes all other calls."""

    def __init__(
        self,
        store: MediaStore,
        facts: MediaFacts,
        encode: Encode,
        *,
        device: torch.device,
        runs_beside_steps: bool,
        on_encoded: Callable[[], object] = lambda: None,
        encode_s_per_element: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`encode` is the tower, which runs beside the steps in a thread, or else between two steps.

        `on_encoded` is called for each item of which the tower has made rows. `encode_s_per_element` are the seconds
        that the tower took at warm-up for each element of an item's tensors; `clock` gives seconds.
        """
        self.store = store
        self.facts = facts
        self._encode = encode
        self._on_encoded = on_encoded
        self._device = device
        self._encode_s_per_element = encode_s_per_element
        self._clock = clock
        self._seats: dict[int, _Seat] = {}  # by slot
        self._faults: dict[bytes, str] = {}  # of items on which the tower failed, until their slots have ended
        self._thread = ThreadPoolExecutor(1, "tower", initializer=_give_way) if runs_beside_steps else None
        self._lock = threading.Lock()  # guards `_outcomes`
        self._outcomes: list[tuple[bytes, MediaRows | str]] = []  # of the thread, since the last look
        self._in_work: _Work | None = None

    @property
    def runs_tower_here(self) -> bool:
        """Whether the next `turn` may run the tower in the thread of the step loop."""
        return self._thread is None and bool(self._seats)

    def reset(self) -> None:
        """Forget all slots, because a new epoch begins. The items stay."""
        for seat in self._seats.values():
            self._leave(seat)
        self._seats.clear()
        self._faults.clear()

    def close(self) -> None:
        """End the thread, after the item that it computes."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def admit(self, admit: Admit) -> None:
        """Note the spans that a request has yet to compute, and pin their items."""
        spans = [span for span in admit.media if span.end > admit.num_cached_tokens]
        if spans:
            found = {digest: self.store.pin(digest) for digest in {span.digest for span in spans}}
            pins = {digest: item for digest, item in found.items() if item is not None}
            self._seats[admit.slot] = _Seat(admit, spans, pins=pins)

    def turn(self, table: SlotTable, *, reach: int, wake: Callable[[], None]) -> MediaTurn:
        """Look which slots may go on and which have failed, and let the tower run where a slot has reached an item.

        A slot has reached an item that lies within the next `reach` tokens. `wake` is called when the tower has
        run, on a CPU by another thread. Raises TowerHangs, which ends the process.
        """
        if not (self._seats or self._outcomes):
            return NOTHING
        self._take_outcomes()
        self._watch_tower()
        ready: dict[int, int] = {}
        faults: list[SlotError] = []
        wanted: bytes | None = None
        for slot, seat in list(self._seats.items()):
            if not (table.is_occupied[slot] and table.admit_of(slot) is seat.admit):
                self._leave(seat)
                del self._seats[slot]
                continue
            num_computed = int(table.num_computed[slot])
            self._pass_spans(seat, num_computed)
            if not seat.spans:
                del self._seats[slot]
                continue
            num_ready = seat.num_ready
            fault = self._look(seat)
            if fault is not None:
                faults.append(SlotError(slot, seat.admit.request_id, SlotErrorCode.MEDIA, fault))
                self._leave(seat)
                del self._seats[slot]
            elif seat.num_ready < len(seat.spans):
                span = seat.spans[seat.num_ready]
                if wanted is None and span.start <= num_computed + reach:
                    wanted = span.digest
            if fault is None and seat.num_ready > num_ready:
                ready[slot] = seat.spans[seat.num_ready].start if seat.num_ready < len(seat.spans) else NO_BOUND
        self._faults.clear()
        if wanted is not None:
            self._run_tower(wanted, wake)
        return MediaTurn(ready, tuple(faults))

    def _pass_spans(self, seat: _Seat, num_computed: int) -> None:
        """Let go of the items behind the tokens that are computed."""
        if seat.spans[0].end > num_computed:
            return
        num_passed = sum(span.end <= num_computed for span in seat.spans)
        seat.spans = seat.spans[num_passed:]
        seat.num_ready -= num_passed
        needed = {span.digest for span in seat.spans}
        for digest in seat.pins.keys() - needed:
            self.store.unpin(seat.pins.pop(digest))

    def _look(self, seat: _Seat) -> str | None:
        """Count the spans whose rows are there, and return why the next span gets none, if so."""
        while seat.num_ready < len(seat.spans):
            span = seat.spans[seat.num_ready]
            if span.digest in self._faults:
                return self._faults[span.digest]
            if span.digest not in seat.pins:
                return "an image of this request is gone from the model server; try again"
            num_rows = self.store.num_rows_of(span.digest)
            if num_rows is None:
                return None
            if span.first_row + span.num_tokens > num_rows:
                end = span.first_row + span.num_tokens
                return f"the prompt has placeholders for {end} rows of an image, and the model makes {num_rows}"
            seat.num_ready += 1
        return None

    def _leave(self, seat: _Seat) -> None:
        for item in seat.pins.values():
            self.store.unpin(item)

    def _run_tower(self, digest: bytes, wake: Callable[[], None]) -> None:
        """Run the tower on an item, on a CPU in the thread unless the thread computes another item."""
        if self._thread is None:
            self._compute(digest)
            wake()
        elif self._in_work is None:
            limit_s = self._limit_s(digest)
            self._in_work = _Work(digest, limit_s, self._clock() + limit_s)

            def work() -> None:
                self._compute(digest)
                wake()

            self._thread.submit(work)
        elif self._in_work.is_late:
            raise TowerHangs(
                f"the image {self._in_work.digest.hex()} is in work for longer than {self._in_work.limit_s:.0f} s, "
                "and another image waits"
            )

    def _limit_s(self, digest: bytes) -> float:
        tensors = self.store.tensors_of(digest) or {}
        num_elements = sum(tensor.numel() for tensor in tensors.values())
        return TOWER_SLACK_S + TOWER_FACTOR * self._encode_s_per_element * num_elements

    def _watch_tower(self) -> None:
        """Let no request wait any longer for an item that the thread computes for longer than its limit."""
        work = self._in_work
        if work is None or self._clock() <= work.due_s:
            return
        fault = f"the model has not computed an image within {work.limit_s:.0f} s"
        if not work.is_late:
            work.is_late = True
            log.warning("the tower hangs", extra={"digest": work.digest.hex(), "limit_s": round(work.limit_s, 1)})
            self.store.forget(work.digest)
        self._faults[work.digest] = fault

    def _compute(self, digest: bytes) -> None:
        """Run the tower and keep the outcome. Raises only what ends the process."""
        tensors = self.store.tensors_of(digest)
        outcome: MediaRows | str
        if tensors is None:
            outcome = "an image of this request is gone from the model server; try again"
        else:
            try:
                outcome = self._encode({name: tensor.to(self._device) for name, tensor in tensors.items()})
            except MediaFault as fault:
                outcome = str(fault)
            except Exception as error:
                if is_device_gone(error):
                    raise
                outcome = f"the model could not compute an image: {type(error).__name__}: {error}"
                if is_out_of_memory(error):
                    free_device_memory(self._device)
        with self._lock:
            self._outcomes.append((digest, outcome))

    def _take_outcomes(self) -> None:
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        for digest, outcome in outcomes:
            self._in_work = None
            if isinstance(outcome, MediaRows):
                self._on_encoded()
                fault = self.store.set_rows(digest, _compact(outcome))
            else:
                fault = outcome
            if fault is not None:
                log.warning("an image was not computed", extra={"digest": digest.hex(), "reason": fault})
                self.store.forget(digest)
                self._faults[digest] = fault


def _compact(rows: MediaRows) -> MediaRows:
    """Return rows that keep no further memory alive, such as a larger tensor of which they are a part."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    return MediaRows(own(rows.rows_nD), None if rows.deepstack_knD is None else own(rows.deepstack_knD))


def _give_way() -> None:
    """Let the steps go before this thread, and before the threads of torch that it starts."""
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + TOWER_NICENESS)
