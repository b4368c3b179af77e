"""The searches by beams of rank 0: between two steps, each search gets a forward pass of its sequences (rule 34).

A search has one slot. The slot's prompt is computed by the ordinary steps. From then on the slot is set apart, and the
desk computes the sequences in the blocks of the slot, and chooses among them.
"""

# W sequences of a search, R sequences of all searches of a pass, V vocabulary

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from textmill_shard.engine.apart_pass import ApartPass, ApartRows
from textmill_shard.engine.memory_faults import NO_ROOM, is_out_of_memory
from textmill_shard.engine.row_sampling import DrawnRows
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.system_memory import free_device_memory
from textmill_shard.sampling.beam_search import BeamChoice, BeamSearch
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.beam_blocks import BeamBlocks, BlockCopy
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import (
    FLAG_FINISHED,
    FLAG_LENGTH,
    Admit,
    FoundSequences,
    IdArray,
    SlotError,
    SlotErrorCode,
    StepResult,
)


@dataclass(slots=True)
class _Search:
    """One search behind its prompt. `num_computed` tokens of each sequence are stored."""

    admit: Admit
    search: BeamSearch
    blocks: BeamBlocks
    num_computed: int
    late_s: float  # on the desk's clock
    tokens_W: Sequence[int] = ()
    copies: tuple[BlockCopy, ...] = ()  # made since the last pass
    states_W: Sequence[int] = ()  # state rows of the sequences, where layers carry state; empty until there is room


@dataclass(slots=True)
class BeamNews:
    """What a pass tells of the searches. The lists `slots`, `tokens` and `flags` are parallel.

    A token is that of the best sequence, and tells the router that the search goes on.
    """

    slots: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    found: list[FoundSequences] = field(default_factory=list)
    errors: list[SlotError] = field(default_factory=list)

    @property
    def ended_slots(self) -> list[int]:
        """The slots whose searches are over or have failed."""
        return [*(one.slot for one in self.found), *(error.slot for error in self.errors)]

    def as_result(self, *, step: int, plan_applied: int, duration_ns: int) -> StepResult:
        """Return the result of the step that the searches had for themselves."""
        return StepResult(
            step=step,
            plan_applied=plan_applied,
            slots=np.array(self.slots, dtype=np.int64),
            tokens=np.array(self.tokens, dtype=np.int64),
            flags=np.array(self.flags, dtype=np.int64),
            errors=tuple(self.errors),
            found=tuple(self.found),
            step_ns=duration_ns,
            device_ns=duration_ns,
        )


class BeamDesk:
    """Owner of the searches. The thread of the step loop alone calls the desk."""

    def __init__(
        self,
        executor: StepExecutor,
        finish_rules: FinishRules,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[ApartPass], None] | None = None,
    ) -> None:
        """`tell` tells the other ranks of a pass before the pass begins; None for a rank alone."""
        self._executor = executor
        self._finish_rules = finish_rules
        self._clock = clock
        self._tell = tell
        self._awaited: dict[int, float] = {}  # slots whose prompts are not computed, with the time of the admission
        self._searches: dict[int, _Search] = {}  # by slot

    def clear(self) -> None:
        """Forget all searches, because a new epoch begins."""
        self._awaited.clear()
        self._searches.clear()

    def admit(self, admit: Admit) -> None:
        """Note the new occupant of a slot, whether or not the occupant searches."""
        self._searches.pop(admit.slot, None)
        self._awaited.pop(admit.slot, None)
        if admit.beams is not None:
            self._awaited[admit.slot] = self._clock()

    @property
    def awaits_prompts(self) -> bool:
        """Whether the prompt of a search is not computed yet."""
        return bool(self._awaited)

    def set_apart(self, slots_N: IdArray, output: ForwardOutput) -> dict[int, torch.Tensor]:
        """Keep the slots whose searches begin with this step out of the next ones. Returns their logits."""
        first_logits = {}
        for row, slot in enumerate(slots_N.tolist()):
            if slot in self._awaited:
                self._executor.table.set_apart(slot)
                first_logits[slot] = self._executor.whole_row(output, row)
        return first_logits

    def begin_all(
        self, first_logits: Mapping[int, torch.Tensor], slots_N: IdArray, drawn_rows: DrawnRows
    ) -> tuple[DrawnRows, dict[int, BeamNews]]:
        """Begin the searches of rows without a fault. Returns the rows with their tokens, and the news by row."""
        tokens_N = drawn_rows.tokens_N.copy()
        begun: dict[int, BeamNews] = {}
        for row, slot in enumerate(slots_N.tolist()):
            if slot in first_logits and row not in drawn_rows.faults:
                begun[row] = self._begin(slot, first_logits[slot])
                tokens_N[row] = begun[row].tokens[0]
        return replace(drawn_rows, tokens_N=tokens_N), begun

    def _begin(self, slot: int, logits_V: torch.Tensor) -> BeamNews:
        """Begin the search of a slot with the logits (float32) of the last token of its prompt."""
        table = self._executor.table
        admit = table.admit_of(slot)
        beams = admit.beams
        assert beams is not None, slot
        admitted_s = self._awaited.pop(slot)
        params = replace(
            admit.sampling,
            end_ids=self._finish_rules.ending_ids(admit.stop_ids, ignore_eos=admit.ignore_eos),
            max_new_tokens=admit.max_new_tokens,
        )
        text = SlotText(admit.text_ids, encoder_ids=admit.prompt_ids[: admit.num_encoder_tokens])
        one = _Search(
            admit=admit,
            search=BeamSearch(beams, params, text, self._executor.device),
            blocks=BeamBlocks(admit, block_size=table.block_size),
            num_computed=len(admit.prompt_ids),
            late_s=admitted_s + beams.max_ms / 1000 if beams.max_ms else float("inf"),
        )
        news = BeamNews()
        self._choose(one, logits_V.expand(beams.num_beams, -1), news)
        return news

    @property
    def is_searching(self) -> bool:
        """Whether a search waits for its next forward pass. Forgets the searches whose slots were dropped."""
        if self._searches:
            self._searches = {
                slot: one
                for slot, one in self._searches.items()
                if self._executor.table.is_occupant(slot, one.admit.request_id)
            }
        return bool(self._searches)

    def advance(self) -> BeamNews:
        """Let each search go on by one token. Call only if `is_searching`. Raises the faults of the device."""
        news = BeamNews()
        passes: list[list[_Search]] = [[]]
        num_rows = 0
        for one in self._searches.values():
            if self._executor.has_states and not self._seat_states(one, news):
                continue
            num_rows += len(one.tokens_W)
            if num_rows > self._executor.table.num_slots:  # the memory has room for so many rows of logits
                passes.append([])
                num_rows = len(one.tokens_W)
            passes[-1].append(one)
        for error in news.errors:
            self._searches.pop(error.slot)
        for searches in passes:
            if searches:
                self._advance(searches, news)
        return news

    def _seat_states(self, one: _Search, news: BeamNews) -> bool:
        """Give the sequences of a search state rows of their own. Returns False while other searches have the rows.

        There are as many rows for searches as there are slots, so one search always goes on. Until then the state of
        the prompt stays in the row of the slot, which is in no step.
        """
        if one.states_W:
            return True
        num_slots = self._executor.table.num_slots
        taken = {row for other in self._searches.values() for row in other.states_W}
        free = [row for row in range(num_slots + 1, 2 * num_slots + 1) if row not in taken]
        if len(free) < len(one.tokens_W):
            return False
        rows = free[: len(one.tokens_W)]
        try:
            self._executor.copy_states([one.admit.slot] * len(rows), rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            free_device_memory(self._executor.device)
            news.errors.append(SlotError(one.admit.slot, one.admit.request_id, NO_ROOM.code, NO_ROOM.message))
            return False
        one.states_W = rows
        return True

    def _advance(self, searches: list[_Search], news: BeamNews) -> None:
        """Compute the last tokens of some searches in one pass. A pass without room runs again search by search."""
        rows = ApartRows(
            slots_R=np.repeat([one.admit.slot for one in searches], [len(one.tokens_W) for one in searches]),
            starts_R=np.repeat([one.num_computed for one in searches], [len(one.tokens_W) for one in searches]),
            tokens_R=np.array([token for one in searches for token in one.tokens_W], dtype=np.int64),
            tables=tuple(one.blocks.tables_WB for one in searches),
            states_R=(
                np.array([row for one in searches for row in one.states_W], dtype=np.int64)
                if self._executor.has_states
                else None
            ),
        )
        if self._tell is not None:
            self._tell(ApartPass(tuple(copy for one in searches for copy in one.copies), rows))
        try:
            logits_RV = self._executor.forward_apart(rows)
        except Exception as error:
            # With other ranks the calls of this rank and theirs no longer fit.
            if self._tell is not None or not is_out_of_memory(error):
                raise
            free_device_memory(self._executor.device)
            if len(searches) == 1:
                self._fail(searches[0], NO_ROOM.code, NO_ROOM.message, news)
                return
            for one in searches:
                self._advance([one], news)
            return
        start = 0
        for one in searches:
            logits_WV = logits_RV[start : start + len(one.tokens_W)]
            start += len(one.tokens_W)
            one.num_computed += 1
            if bool(torch.isfinite(logits_WV).all()):
                self._choose(one, logits_WV, news)
            else:
                self._fail(one, SlotErrorCode.NOT_FINITE, "the model gave logits that are not finite", news)

    def _choose(self, one: _Search, logits_WV: torch.Tensor, news: BeamNews) -> None:
        """Let the search choose, and give each chosen sequence its blocks."""
        slot = one.admit.slot
        choice: BeamChoice = one.search.advance(logits_WV, is_late=self._clock() >= one.late_s)
        news.slots.append(slot)
        news.tokens.append(choice.tokens_W[0])
        if choice.is_over:
            news.flags.append(FLAG_FINISHED | FLAG_LENGTH)
            sequences, scores = one.search.best()
            news.found.append(FoundSequences(slot, sequences, np.array(scores, dtype=np.float32)))
            self._searches.pop(slot, None)
            return
        news.flags.append(0)
        one.copies = tuple(one.blocks.fork(choice.parents_W, one.num_computed))
        for copy in one.copies:
            self._executor.copy_block(copy)
        if one.states_W:
            self._executor.copy_states([one.states_W[parent] for parent in choice.parents_W], one.states_W)
        one.tokens_W = choice.tokens_W
        self._searches[slot] = one

    def _fail(self, one: _Search, code: SlotErrorCode, message: str, news: BeamNews) -> None:
        self._searches.pop(one.admit.slot, None)
        news.errors.append(SlotError(one.admit.slot, one.admit.request_id, code, message))
