"""Keeps the matchers of the slots, which compile while their slot prefills and fill masks beside the forward pass.

Only rank 0 has matchers. A matcher belongs to the Admit that seated the request (rule 18), and an error in a matcher is
a fault of that slot alone (rule 19).
"""

# V vocabulary

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from textmill_shard.grammar.fault import GrammarFault
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import Admit, IdArray
from textmill_shard.slots.slot_table import SlotTable

if TYPE_CHECKING:  # the factory is handed in, so that a shard without grammars needs no grammar library
    from textmill_shard.grammar.matcher import Matcher, MatcherFactory

NUM_COMPILE_THREADS = 2
NUM_MASK_THREADS = 4
# The library bounds the work of a mask to some 20 ms; a slot whose mask takes this long has hit a fault.
MASK_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Seat:
    """The grammar of the request that occupies a slot."""

    admit: Admit
    num_output_tokens: int
    matcher: "Matcher | None" = None  # None until it is compiled
    fault: str | None = None
    mask: "Future[npt.NDArray[np.bool_]] | None" = None  # of the step under way


class GrammarSlots:
    """`begin`, `take_compiled`, `start_masks`, `mask`, `append` and `reset` are called by the step loop."""

    def __init__(self, factory: "MatcherFactory | None", finish_rules: FinishRules) -> None:
        self._factory = factory
        self._finish_rules = finish_rules
        self._seats: dict[int, _Seat] = {}  # by slot
        self._compilers = ThreadPoolExecutor(NUM_COMPILE_THREADS, "grammar")
        self._mask_fillers = ThreadPoolExecutor(NUM_MASK_THREADS, "grammar-mask")
        self._lock = threading.Lock()
        self._compiled: list[_Seat] = []  # since the last look
        self.has_masks = False  # whether the step under way waits for masks

    def reset(self) -> None:
        """Forget all slots, because a new epoch begins. Nobody waits for grammars that still compile."""
        self._seats.clear()

    def begin(self, admit: Admit, on_compiled: Callable[[], None]) -> None:
        """Compile the grammar of a request that was just seated. Another thread calls `on_compiled` at the end."""
        seat = self._seats[admit.slot] = _Seat(admit, len(admit.output_ids))
        self._compilers.submit(self._compile, seat, on_compiled)

    def take_compiled(self, table: SlotTable) -> list[int]:
        """Return the slots whose grammar is ready or faulty. Slots whose request has left are not among them."""
        with self._lock:
            compiled, self._compiled = self._compiled, []
        return [seat.admit.slot for seat in compiled if self._is_current(table, seat)]

    def start_masks(self, table: SlotTable, slots_N: IdArray) -> None:
        """Begin to compute the masks of the slots that have a grammar."""
        self.has_masks = False
        if not self._seats:
            return
        for slot in slots_N.tolist():
            seat = self._seats.get(slot)
            if seat is not None and seat.fault is None and self._is_current(table, seat):
                seat.mask = self._mask_fillers.submit(self._fill, seat)
                self.has_masks = True

    def finish_masks(self) -> None:
        """Wait for the masks that `start_masks` began and nobody took, before the matchers are asked again."""
        begun = [seat.mask for seat in self._seats.values() if seat.mask is not None]
        wait(begun, MASK_TIMEOUT_S)

    def is_seated(self, table: SlotTable, slot: int) -> bool:
        """Whether the request with this slot's grammar still has the slot."""
        seat = self._seats.get(slot)
        return seat is not None and self._is_current(table, seat)

    def mask(self, table: SlotTable, slot: int) -> npt.NDArray[np.bool_]:
        """[V] ids that may be sampled now in a slot whose request has a grammar. Raises GrammarFault."""
        seat = self._seats[slot]
        assert self._is_current(table, seat), slot
        if seat.fault is None:
            assert seat.mask is not None, slot
            try:
                return seat.mask.result(MASK_TIMEOUT_S)
            except GrammarFault as error:
                seat.fault = str(error)
            except FutureTimeout:
                seat.fault = f"the grammar's matcher took more than {MASK_TIMEOUT_S:g} s for one token"
            except BaseException as error:  # a panic of the library is no Exception
                seat.fault = f"the grammar's matcher broke: {type(error).__name__}: {error}"
        raise GrammarFault(seat.fault)

    def append(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Move the matchers on by the tokens that count as output."""
        for slot, token in zip(slots, tokens, strict=True):
            seat = self._seats.get(slot)
            if seat is None or seat.matcher is None or seat.fault is not None:
                continue
            seat.num_output_tokens += 1
            try:
                seat.matcher.consume([token])
            except GrammarFault as error:
                seat.fault = str(error)

    def _compile(self, seat: _Seat, on_compiled: Callable[[], None]) -> None:
        assert self._factory is not None
        admit = seat.admit
        assert admit.grammar is not None
        try:
            seat.matcher = self._factory.build(admit.grammar, admit.output_ids.tolist(), caller=admit.caller)
        except GrammarFault as error:
            seat.fault = str(error)
        except BaseException as error:  # a panic of the library is no Exception; told as the slot's fault
            seat.fault = f"the grammar's compiler broke: {type(error).__name__}: {error}"
        with self._lock:
            self._compiled.append(seat)
        on_compiled()

    def _fill(self, seat: _Seat) -> npt.NDArray[np.bool_]:
        assert seat.matcher is not None
        allowed_V = seat.matcher.allowed()
        admit = seat.admit
        is_early = seat.num_output_tokens < admit.sampling.min_new_tokens
        if is_early or admit.ignore_eos:
            early_stop_ids = admit.stop_ids if is_early else ()
            held_back = self._finish_rules.ending_ids(early_stop_ids, ignore_eos=False)
            later_V = allowed_V.copy()
            later_V[list(held_back)] = False
            if later_V.any():
                return later_V
            # The grammar is complete: whatever was asked for, nothing but the end can follow.
        if not allowed_V.any():
            raise GrammarFault("no token can follow: the grammar has come to a place that it cannot leave")
        return allowed_V

    def _is_current(self, table: SlotTable, seat: _Seat) -> bool:
        slot = seat.admit.slot
        return bool(table.is_occupied[slot]) and table.admit_of(slot) is seat.admit
