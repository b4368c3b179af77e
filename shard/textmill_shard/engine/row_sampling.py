"""Samples the rows of a step with the state of their slots. The fault of one row harms no other row (rule 19)."""

# N rows that sample, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.device import is_device_gone
from textmill_shard.engine.part_desk import Gift, PartDesk, host_scan
from textmill_shard.engine.slot_admission import admit_to
from textmill_shard.engine.upload import HostArray, Upload, to_host
from textmill_shard.engine.wish_upload import WishUpload, build_step_rows
from textmill_shard.grammar.fault import GrammarFault
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput, HostScan
from textmill_shard.sampling.logprobs import TopTokens
from textmill_shard.sampling.part_rows import JoinedRows, WholeRows
from textmill_shard.sampling.row_selection import SelectedRows, Selection, StepRows
from textmill_shard.sampling.sampler import Draft, SampledRows, Sampler
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import NO_IDS, Admit, FloatArray, IdArray, SlotErrorCode
from textmill_shard.slots.slot_table import SlotTable


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row has no token."""

    code: SlotErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """The tokens of a step on the host, one entry per row. The token of a row in `faults` means nothing."""

    tokens_N: IdArray
    logprobs_N: FloatArray | None  # NaN for a row that did not ask; None when no row asked
    top: tuple[TopTokens | None, ...]  # empty when no row asked
    faults: dict[int, RowFault] = field(default_factory=dict)  # by row
    redrawn_N: npt.NDArray[np.bool_] | None = None  # rows whose token is not the one of the launch; None: no row

    def select(self, rows: IdArray) -> "DrawnRows":
        """Return some of the rows, in the order of `rows`."""
        place_of_row = {row: place for place, row in enumerate(rows.tolist())}
        return DrawnRows(
            tokens_N=self.tokens_N[rows],
            logprobs_N=None if self.logprobs_N is None else self.logprobs_N[rows],
            top=tuple(self.top[row] for row in rows.tolist()) if self.top else (),
            faults={place_of_row[row]: fault for row, fault in self.faults.items() if row in place_of_row},
            redrawn_N=None if self.redrawn_N is None else self.redrawn_N[rows],
        )


@dataclass(slots=True)
class LaunchedDraw:
    """The draw of a step. `tokens_N` is what the rows drew, on the device; rows of `draft.open_N` may draw again."""

    draft: Draft | None  # None: `drawn_rows` holds everything
    tokens_N: torch.Tensor | None  # int64; None where no state needs the tokens on the device
    rows: StepRows | None
    grammar_faults: dict[int, RowFault]
    drawn_rows: DrawnRows | None = None
    gift: Gift | None = None  # where ranks share a vocabulary

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What the host reads for `RowSampler.finish`."""
        if self.draft is None:
            return []
        top = () if self.draft.top is None else self.draft.top.tensors
        return [*_read_tensors(self.draft.sampled), *_given(self.draft.open_N), *top]

    @property
    def may_look(self) -> bool:
        """Whether a row may turn out to need more of its scores when the host reads the draw."""
        if self.gift is not None:
            return self.gift.may_look
        return self.draft is not None and self.draft.open_N is not None


class RowSampler:
    """Samples for the step loop. Only rank 0 has a row sampler.

    The state of a slot belongs to one Admit (rule 18). The next occupant of the slot gets a new state, and so does a
    request that is admitted again. Each step calls `prepare`, `begin_masks`, `launch`, `note`, `finish` and `consume`
    once. Without overlap `note` comes after `finish`. With overlap `finish` and `consume` may come after the launch of
    the next step.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        finish_rules: FinishRules,
        grammars: GrammarSlots,
        has_overlap: bool = False,
        parts: PartDesk | None = None,
    ) -> None:
        """`parts` is None where this rank computes all logits."""
        self._sampler = sampler
        self._grammars = grammars
        self._finish_rules = finish_rules
        self._has_overlap = has_overlap
        self._parts = parts
        self._selection: Selection = ()  # the selection of the step that `prepare` saw last
        self._wishes: WishUpload | None = None  # the selection on its way; None where every row takes the best id

    def admit(self, admit: Admit) -> None:
        """Write the sampling state of the request that takes a slot."""
        admit_to(self._sampler, self._finish_rules, admit)

    def prepare(self, slots_N: IdArray, upload: Upload) -> None:
        """Select the rows of each wish, which go to the device with `upload`, which is sent before `launch`."""
        self._selection = self._sampler.select(slots_N)
        self._wishes = None
        # A CPU has a scan of the logits where all rows take the best id. With overlap the next step needs the ids.
        needs_rows = self._has_overlap or self._sampler.device.type != "cpu"
        if needs_rows or not self._sampler.takes_best(self._selection):
            self._wishes = WishUpload(self._selection, upload)

    @property
    def needs_masks(self) -> bool:
        """Whether a row of the prepared step has a grammar."""
        return bool(self._selection) and self._sampler.grammar_rows(self._selection) is not None

    def begin_masks(self, table: SlotTable, slots_N: IdArray) -> None:
        """Let threads begin the masks of the rows. The tokens that came before are known to the matchers (rule 25)."""
        self._grammars.start_masks(table, slots_N)

    def launch(self, table: SlotTable, slots_N: IdArray, output: ForwardOutput) -> LaunchedDraw:
        """Draw one token per row of the logits. Waits for masks, and for nothing on the device unless a draw fails."""
        selection, logits_NV = self._selection, output.logits_NV
        if self._wishes is not None:
            rows = self._wishes.rows()
        elif self._parts is None and output.scan is not None:
            best_rows = _take_best(output.scan, self._sampler.logprob_rows(selection))
            return LaunchedDraw(None, None, None, {}, best_rows)
        else:
            rows = build_step_rows(selection, self._sampler.device)
        grammar_faults = self._take_masks(table, self._sampler.grammar_rows(selection))
        if self._parts is not None:
            return self._launch_parts(self._parts, slots_N, output, rows, grammar_faults)
        scan = None if output.scan is None else output.scan.as_row_scan()
        try:
            draft = self._sampler.draft(logits_NV, rows, scan)
        except Exception as error:
            if is_device_gone(error):
                raise  # the device is gone, for every row
            drawn_rows, tokens_N = self._draw_alone(
                slots_N,
                lambda row, this_rows: self._sampler.draft(
                    logits_NV[row : row + 1], this_rows, None if scan is None else scan.rows(slice(row, row + 1))
                ),
            )
            return LaunchedDraw(None, tokens_N, rows, grammar_faults, drawn_rows)
        return LaunchedDraw(draft, draft.sampled.tokens_N, rows, grammar_faults)

    def _launch_parts(
        self,
        parts: PartDesk,
        slots_N: IdArray,
        output: ForwardOutput,
        rows: StepRows,
        grammar_faults: dict[int, RowFault],
    ) -> LaunchedDraw:
        """Draw one token per row, of whose logits each rank has a part.

        An exception before the ranks have exchanged what they give ends the shard, because the calls of the ranks
        would no longer fit.
        """
        gift = parts.give(output, rows)
        joined = parts.exchange(gift)
        if self._wishes is None:
            best_rows = _take_best(host_scan(joined), self._sampler.logprob_rows(self._selection))
            return LaunchedDraw(None, None, None, {}, best_rows)
        try:
            draft = parts.sampler.draft(gift.part, joined, rows)
        except Exception as error:
            if is_device_gone(error):
                raise
            drawn_rows, tokens_N = self._draw_alone(
                slots_N,
                lambda row, this_rows: parts.sampler.draft(gift.part, self._row_of(joined, row), this_rows),
            )
            return LaunchedDraw(None, tokens_N, rows, grammar_faults, drawn_rows, gift)
        return LaunchedDraw(draft, draft.sampled.tokens_N, rows, grammar_faults, gift=gift)

    def _row_of(self, joined: JoinedRows, row: int) -> JoinedRows:
        """Return one joined row of the prepared step."""
        wishes = self._sampler.wishes
        return joined.row(
            row, drawn=_place_of(self._selection[wishes.draw], row), rated=_place_of(self._selection[wishes.top], row)
        )

    def note(self, launched: LaunchedDraw) -> None:
        """Let the state of the rows take in their tokens.

        The sampler notes the tokens of rows with a fault too. Nobody reads them, because the slots of these rows end
        with this step.
        """
        if launched.tokens_N is not None and launched.rows is not None:
            self._sampler.append(launched.rows, launched.tokens_N)

    def finish(self, launched: LaunchedDraw, arrays: Sequence[HostArray], *, is_awaited: bool = False) -> DrawnRows:
        """Return what the rows drew. `arrays` are the tensors of the draw on the host.

        Open rows draw again, for which the host waits for the device; `tokens_N` of the draw then has their tokens.
        `is_awaited`: other ranks wait until this rank knows which rows it has to see whole.
        """
        drawn_rows = launched.drawn_rows
        if drawn_rows is None:
            assert launched.draft is not None
            drawn_rows = self._finish_draft(launched, launched.draft, list(arrays), is_awaited=is_awaited)
        elif launched.gift is not None and self._parts is not None:
            self._parts.look_at_none(launched.gift, is_awaited=is_awaited)
        faults = launched.grammar_faults
        return replace(drawn_rows, faults={**drawn_rows.faults, **faults}) if faults else drawn_rows

    def consume(self, slots_N: IdArray, tokens_N: IdArray) -> None:
        """Let the grammars take in tokens that count as output. `slots_N` and `tokens_N` are parallel."""
        self._grammars.append(slots_N.tolist(), tokens_N.tolist())

    def _take_masks(self, table: SlotTable, rows: SelectedRows | None) -> dict[int, RowFault]:
        """Give the sampler the mask of each row that has a grammar. Returns the rows whose matcher failed.

        A row whose request has ended while its step was launched has no mask, and nobody reads its token.
        """
        faults: dict[int, RowFault] = {}
        if rows is None:
            return faults
        masks: list[npt.NDArray[np.bool_]] = []
        for row, slot in zip(rows.rows_G.tolist(), rows.slots_G.tolist(), strict=True):
            allowed_V = np.zeros(0, dtype=bool)
            if self._grammars.is_seated(table, slot):
                try:
                    allowed_V = self._grammars.mask(table, slot)
                    self._sampler.grammar_mask.set_allowed(slot, allowed_V)
                except GrammarFault as fault:
                    faults[row] = RowFault(SlotErrorCode.INTERNAL, str(fault))
            masks.append(allowed_V)
        if self._parts is not None:
            self._parts.send_masks(masks)
        return faults

    def _finish_draft(
        self, launched: LaunchedDraw, draft: Draft, arrays: list[HostArray], *, is_awaited: bool = False
    ) -> DrawnRows:
        top_arrays: list[HostArray] = []
        if draft.top is not None:
            top_arrays = arrays[-3:]
            del arrays[-3:]
        is_open_N = None if draft.open_N is None else arrays.pop()
        whole = self._look(launched, draft, is_open_N, top_arrays, is_awaited=is_awaited)
        alternatives: tuple[TopTokens | None, ...] = ()
        if top_arrays:
            alternatives = self._sampler.alternatives(draft, *top_arrays, whole=whole)
        sampled, redrawn_N, open_faults = draft.sampled, None, {}
        if is_open_N is not None and is_open_N.any():
            drafted_N = arrays[0]
            try:
                sampled = self._settle(draft, whole)
                arrays = to_host(*_read_tensors(sampled))
                launched.tokens_N = sampled.tokens_N
            except Exception as error:
                if is_device_gone(error):
                    raise
                fault = RowFault(SlotErrorCode.INTERNAL, f"sampling failed: {type(error).__name__}: {error}")
                open_faults = dict.fromkeys(np.flatnonzero(is_open_N).tolist(), fault)
            redrawn_N = arrays[0] != drafted_N
        tokens_N, not_finite_N, *rest = arrays
        logprobs_N = None if sampled.logprobs_N is None else rest.pop(0)
        faults = {**open_faults, **_not_finite_faults(not_finite_N)}
        if sampled.stuck_N is not None:
            faults = {**_stuck_faults(rest.pop(0)), **faults}
        return DrawnRows(
            tokens_N=tokens_N.astype(np.int64),
            logprobs_N=logprobs_N,
            top=alternatives,
            faults=faults,
            redrawn_N=redrawn_N,
        )

    def _look(
        self,
        launched: LaunchedDraw,
        draft: Draft,
        is_open_N: HostArray | None,
        top_arrays: Sequence[HostArray],
        *,
        is_awaited: bool,
    ) -> WholeRows | None:
        """Lay rows together with the other ranks where what has travelled of them does not suffice."""
        if self._parts is None or launched.gift is None:
            return None
        rows_O: IdArray = NO_IDS if is_open_N is None else np.flatnonzero(is_open_N)
        if top_arrays:
            rows_O = np.union1d(rows_O, self._parts.sampler.tied_rows(draft, top_arrays[0]))
        return self._parts.look(launched.gift, rows_O, is_awaited=is_awaited)

    def _settle(self, draft: Draft, whole: WholeRows | None) -> SampledRows:
        if self._parts is None or whole is None:
            return self._sampler.settle(draft)
        return self._parts.sampler.settle(draft, whole)

    def _draw_alone(
        self, slots_N: IdArray, draft_row: Callable[[int, StepRows], Draft]
    ) -> tuple[DrawnRows, torch.Tensor]:
        """Draw each row by itself, to find the row at fault. A draw does not depend on the other rows of the batch.

        `draft_row` drafts the row of this index. Where ranks share a vocabulary, a row whose candidates do not suffice
        fails too, because the other ranks make no further call for the step.
        """
        num_rows = len(slots_N)
        tokens_N = torch.zeros(num_rows, dtype=torch.int64, device=self._sampler.device)
        logprobs_N = np.full(num_rows, np.nan, dtype=np.float32)
        top: list[TopTokens | None] = [None] * num_rows
        faults: dict[int, RowFault] = {}
        for row in range(num_rows):
            this = slice(row, row + 1)
            try:
                rows = build_step_rows(self._sampler.select(slots_N[this]), self._sampler.device)
                draft = draft_row(row, rows)
                launched = LaunchedDraw(draft, draft.sampled.tokens_N, rows, {})
                drawn_rows = self._finish_draft(launched, draft, to_host(*launched.tensors))
            except Exception as error:
                if is_device_gone(error):
                    raise
                faults[row] = RowFault(SlotErrorCode.INTERNAL, f"sampling failed: {type(error).__name__}: {error}")
                continue
            assert launched.tokens_N is not None
            tokens_N[this] = launched.tokens_N
            if drawn_rows.logprobs_N is not None:
                logprobs_N[row] = drawn_rows.logprobs_N[0]
            top[row] = drawn_rows.top[0] if drawn_rows.top else None
            if drawn_rows.faults:
                faults[row] = drawn_rows.faults[0]
        is_asked = not np.isnan(logprobs_N).all()
        on_host = DrawnRows(tokens_N.cpu().numpy(), logprobs_N if is_asked else None, tuple(top), faults)
        return on_host, tokens_N


def _place_of(rows: SelectedRows | None, row: int) -> int | None:
    """Return where a row stands among the rows that have a wish; None where the row does not have the wish."""
    if rows is None or row not in rows.rows_G:
        return None
    return int(np.searchsorted(rows.rows_G, row))


def _read_tensors(sampled: SampledRows) -> list[torch.Tensor]:
    """Return the tensors that the host reads, those that may be missing at the end."""
    return [sampled.tokens_N, sampled.not_finite_N, *_given(sampled.logprobs_N), *_given(sampled.stuck_N)]


def _given(tensor: torch.Tensor | None) -> list[torch.Tensor]:
    return [] if tensor is None else [tensor]


def _take_best(scan: HostScan, logprob_rows: SelectedRows | None) -> DrawnRows:
    """Return what `Sampler` returns for rows that all take the best id, straight from the scan.

    `logprob_rows` are the rows that ask for log-probabilities, or None.
    """
    # The tokens are copied, because the scan shares its memory with the logits, and a result that waits to be sent
    # would keep this memory alive.
    tokens_N, not_finite_N = scan.best_N.copy(), scan.not_finite_N
    faults = {}
    if not_finite_N.any():
        faults = _not_finite_faults(not_finite_N)
        tokens_N = np.where(not_finite_N, 0, tokens_N)
    logprobs_N = None
    if logprob_rows is not None:
        logprobs_N = scan.best_scores_N - scan.log_mass_N
        if not logprob_rows.is_all:
            is_silent_N = np.ones(len(tokens_N), dtype=bool)
            is_silent_N[logprob_rows.rows_G] = False
            logprobs_N[is_silent_N] = np.nan
    return DrawnRows(tokens_N=tokens_N, logprobs_N=logprobs_N, top=(), faults=faults)


def _not_finite_faults(not_finite_N: npt.NDArray[np.bool_]) -> dict[int, RowFault]:
    fault = RowFault(SlotErrorCode.NOT_FINITE, "the model gave logits that are not finite")
    return dict.fromkeys(np.flatnonzero(not_finite_N).tolist(), fault)


def _stuck_faults(stuck_N: npt.NDArray[np.bool_]) -> dict[int, RowFault]:
    message = "no token is left: what is allowed and what is forbidden exclude each other here; ask for less"
    return dict.fromkeys(np.flatnonzero(stuck_N).tolist(), RowFault(SlotErrorCode.INTERNAL, message))
