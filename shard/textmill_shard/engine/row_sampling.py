"""Samples the rows of a step with the state of their slots. The fault of one row harms no other row (rule 19)."""

# N rows that sample, V vocabulary

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.engine.batch_builder import WishUpload, build_step_rows
from textmill_shard.engine.upload import Upload, to_host
from textmill_shard.grammar.matcher import GrammarFault
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput, HostScan, RowScan
from textmill_shard.sampling.logprobs import TopTokens
from textmill_shard.sampling.row_selection import SelectedRows, Selection, StepRows
from textmill_shard.sampling.sampler import SampledRows, Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import Admit, FloatArray, IdArray, SlotErrorCode
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


class RowSampler:
    """Samples for the step loop. Only rank 0 has a row sampler.

    The state of a slot belongs to one Admit (rule 18). The next occupant of the slot gets a new state, and so does a
    request that is admitted again. Each step calls `prepare`, `draw` and `append` once, in this order.
    """

    def __init__(self, *, sampler: Sampler, finish_rules: FinishRules, grammars: GrammarSlots) -> None:
        self._sampler = sampler
        self._grammars = grammars
        self._finish_rules = finish_rules
        self._selection: Selection = ()  # the selection of the step that `prepare` saw last
        self._wishes: WishUpload | None = None  # the selection on its way; None where every row takes the best id
        self._rows: StepRows | None = None  # the selection on the device
        self._tokens_N: torch.Tensor | None = None  # drawn in this step, on the device; None where no state needs them

    def admit(self, admit: Admit) -> None:
        """Write the sampling state of the request that takes a slot."""
        end_ids = self._finish_rules.ending_ids(admit.stop_ids, ignore_eos=admit.ignore_eos)
        params = replace(admit.sampling, end_ids=end_ids, has_grammar=admit.grammar is not None)
        self._sampler.admit(admit.slot, params, SlotText(admit.text_ids, admit.output_ids))

    def prepare(self, table: SlotTable, slots_N: IdArray, upload: Upload) -> None:
        """Select the rows of each wish, and begin the masks that threads make beside the forward pass.

        The rows go to the device with `upload`, which is sent before `draw`.
        """
        self._grammars.start_masks(table, slots_N)
        self._selection = self._sampler.select(slots_N)
        self._rows = self._wishes = None
        is_on_gpu = self._sampler.device.type != "cpu"  # a CPU has a scan of the logits where all rows take the best id
        if is_on_gpu or not self._sampler.takes_best(self._selection):
            self._wishes = WishUpload(self._selection, upload)

    def draw(self, table: SlotTable, slots_N: IdArray, output: ForwardOutput) -> DrawnRows:
        """Draw one token per row of the logits. Waits for the device, because the host needs the tokens."""
        selection, logits_NV = self._selection, output.logits_NV
        self._tokens_N = None
        if self._wishes is not None:
            self._rows = self._wishes.rows()
        else:
            if output.scan is not None:
                return _take_best(output.scan, self._sampler.logprob_rows(selection))
            self._rows = build_step_rows(selection, self._sampler.device)
        grammar_faults = self._take_masks(table, self._sampler.grammar_rows(selection))
        scan = None if output.scan is None else output.scan.as_row_scan()
        try:
            drawn_rows, self._tokens_N = self._draw(logits_NV, self._rows, scan)
        except torch.AcceleratorError:
            raise  # the device is gone, for every row
        except Exception:
            drawn_rows, self._tokens_N = self._draw_alone(slots_N, logits_NV)
        return replace(drawn_rows, faults={**drawn_rows.faults, **grammar_faults}) if grammar_faults else drawn_rows

    def append(self, slots_N: IdArray, tokens_N: IdArray) -> None:
        """Note the tokens of the rows of the last `draw` that have no fault. `slots_N` and `tokens_N` are parallel.

        The sampler notes the tokens of the other rows too. Nobody reads them, because the slots of these rows end with
        this step.
        """
        if self._tokens_N is not None and self._rows is not None:
            self._sampler.append(self._rows, self._tokens_N)
        self._grammars.append(slots_N.tolist(), tokens_N.tolist())

    def _take_masks(self, table: SlotTable, rows: SelectedRows | None) -> dict[int, RowFault]:
        """Give the sampler the mask of each row that has a grammar. Returns the rows whose matcher failed."""
        faults: dict[int, RowFault] = {}
        if rows is None:
            return faults
        for row, slot in zip(rows.rows_G.tolist(), rows.slots_G.tolist(), strict=True):
            try:
                self._sampler.grammar_mask.set_allowed(slot, self._grammars.mask(table, slot))
            except GrammarFault as fault:
                faults[row] = RowFault(SlotErrorCode.INTERNAL, str(fault))
        return faults

    def _draw(
        self, logits_NV: torch.Tensor, rows: StepRows, scan: RowScan | None = None
    ) -> tuple[DrawnRows, torch.Tensor]:
        """Draw the rows together. Returns what they drew on the host, and their tokens on the device."""
        draft = self._sampler.draft(logits_NV, rows, scan)
        sampled = draft.sampled
        tokens_N, not_finite_N, *arrays = to_host(*_read_tensors(sampled), *_given(draft.open_N))
        if draft.open_N is not None and arrays.pop().any():
            sampled = self._sampler.settle(draft)
            tokens_N, not_finite_N, *arrays = to_host(*_read_tensors(sampled))
        logprobs_N = None if sampled.logprobs_N is None else arrays.pop(0)
        faults = _not_finite_faults(not_finite_N)
        if sampled.stuck_N is not None:
            faults = {**_stuck_faults(arrays.pop(0)), **faults}
        drawn_rows = DrawnRows(
            tokens_N=tokens_N.astype(np.int64), logprobs_N=logprobs_N, top=sampled.top, faults=faults
        )
        return drawn_rows, sampled.tokens_N

    def _draw_alone(self, slots_N: IdArray, logits_NV: torch.Tensor) -> tuple[DrawnRows, torch.Tensor]:
        """Draw each row by itself, to find the row at fault. A draw does not depend on the other rows of the batch."""
        num_rows = len(slots_N)
        tokens_N = torch.zeros(num_rows, dtype=torch.int64, device=self._sampler.device)
        logprobs_N = np.full(num_rows, np.nan, dtype=np.float32)
        top: list[TopTokens | None] = [None] * num_rows
        faults: dict[int, RowFault] = {}
        for row in range(num_rows):
            this = slice(row, row + 1)
            try:
                rows = build_step_rows(self._sampler.select(slots_N[this]), self._sampler.device)
                drawn_rows, tokens_N[this] = self._draw(logits_NV[this], rows)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                faults[row] = RowFault(SlotErrorCode.INTERNAL, f"sampling failed: {type(error).__name__}: {error}")
                continue
            if drawn_rows.logprobs_N is not None:
                logprobs_N[row] = drawn_rows.logprobs_N[0]
            top[row] = drawn_rows.top[0] if drawn_rows.top else None
            if drawn_rows.faults:
                faults[row] = drawn_rows.faults[0]
        is_asked = not np.isnan(logprobs_N).all()
        on_host = DrawnRows(tokens_N.cpu().numpy(), logprobs_N if is_asked else None, tuple(top), faults)
        return on_host, tokens_N


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
