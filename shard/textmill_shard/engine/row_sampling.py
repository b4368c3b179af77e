"""Sampling of the rows of a step with the state of their slots; one row's fault stays that row's (rule 19)."""

# N rows that sample, V vocabulary

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.engine.batch_builder import build_step_rows
from textmill_shard.grammar.matcher import GrammarFault
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput, HostScan, RowScan
from textmill_shard.sampling.logprobs import TopTokens
from textmill_shard.sampling.row_selection import SelectedRows, Selection, StepRows
from textmill_shard.sampling.sampler import Sampler
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
    """Tokens on the host, one entry per row. The token of a row in `faults` means nothing."""

    tokens_N: IdArray
    logprobs_N: FloatArray | None  # NaN = not asked; None when no row asked
    top: tuple[TopTokens | None, ...]  # empty when no row asked
    faults: dict[int, RowFault] = field(default_factory=dict)  # by row


class RowSampler:
    """The sampler of the step loop; only rank 0 has one.

    Its state of a slot belongs to the Admit that seated the request (rule 18): the next occupant, or the same request
    admitted again, gets a new one. Each step has one `prepare`, one `draw` and one `append`, in this order.
    """

    def __init__(self, *, sampler: Sampler, finish_rules: FinishRules, grammars: GrammarSlots) -> None:
        self._sampler = sampler
        self._grammars = grammars
        self._finish_rules = finish_rules
        self._selection: Selection = ()  # of the step that was prepared last
        self._rows: StepRows | None = None  # the same on the device; None where every row takes the best id
        self._tokens_N: torch.Tensor | None = None  # that its rows drew, on the device; None where no state needs them

    def admit(self, admit: Admit) -> None:
        """Seat a request."""
        end_ids = self._finish_rules.ending_ids(admit.stop_ids, ignore_eos=admit.ignore_eos)
        params = replace(admit.sampling, end_ids=end_ids, has_grammar=admit.grammar is not None)
        self._sampler.admit(admit.slot, params, SlotText(admit.text_ids, admit.output_ids))

    def prepare(self, table: SlotTable, slots_N: IdArray) -> None:
        """Begin what can be done beside the forward pass of the rows that are to sample."""
        self._grammars.start_masks(table, slots_N)
        self._selection = self._sampler.select(slots_N)
        self._rows = None
        if not self._sampler.takes_best(self._selection):
            self._rows = build_step_rows(self._selection, self._sampler.device)

    def draw(self, table: SlotTable, slots_N: IdArray, output: ForwardOutput) -> DrawnRows:
        """One token per row of the logits. Waits for the device: tokens are needed on the host."""
        selection, logits_NV = self._selection, output.logits_NV
        self._tokens_N = None
        if self._rows is None:
            if output.scan is not None:
                return _take_best(output.scan, self._sampler.logprob_rows(selection))
            self._rows = build_step_rows(selection, self._sampler.device)
        grammar_faults = self._take_masks(table, self._sampler.grammar_rows(selection))
        scan = None if output.scan is None else output.scan.as_row_scan()
        try:
            drawn, self._tokens_N = self._draw(logits_NV, self._rows, scan)
        except torch.AcceleratorError:
            raise  # the device is gone for everybody
        except Exception:
            drawn, self._tokens_N = self._draw_alone(slots_N, logits_NV)
        return replace(drawn, faults={**drawn.faults, **grammar_faults}) if grammar_faults else drawn

    def append(self, slots_N: IdArray, tokens_N: IdArray) -> None:
        """Note the tokens that count: those of the rows that were drawn last without a fault.

        The slots of the others end with this step, so that what the sampler notes of them is never read.
        """
        if self._tokens_N is not None and self._rows is not None:
            self._sampler.append(self._rows, self._tokens_N)
        self._grammars.append(slots_N.tolist(), tokens_N.tolist())

    def _take_masks(self, table: SlotTable, rows: SelectedRows | None) -> dict[int, RowFault]:
        """Give each row the ids that its grammar lets follow; rows whose matcher failed are named."""
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
        """What the rows drew, and their tokens on the device."""
        sampled = self._sampler.sample(logits_NV, rows, scan)
        not_finite_N: npt.NDArray[np.bool_] = sampled.not_finite_N.cpu().numpy()
        drawn = DrawnRows(
            tokens_N=sampled.tokens_N.cpu().numpy().astype(np.int64),
            logprobs_N=None if sampled.logprobs_N is None else sampled.logprobs_N.cpu().numpy(),
            top=sampled.top,
            faults=_not_finite_faults(not_finite_N),
        )
        return drawn, sampled.tokens_N

    def _draw_alone(self, slots_N: IdArray, logits_NV: torch.Tensor) -> tuple[DrawnRows, torch.Tensor]:
        """Each row by itself, to find whose fault it was. Draws do not depend on the neighbours."""
        num_rows = len(slots_N)
        tokens_N = torch.zeros(num_rows, dtype=torch.int64, device=self._sampler.device)
        logprobs_N = np.full(num_rows, np.nan, dtype=np.float32)
        top: list[TopTokens | None] = [None] * num_rows
        faults: dict[int, RowFault] = {}
        for row in range(num_rows):
            this = slice(row, row + 1)
            try:
                rows = build_step_rows(self._sampler.select(slots_N[this]), self._sampler.device)
                drawn, tokens_N[this] = self._draw(logits_NV[this], rows)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                faults[row] = RowFault(SlotErrorCode.INTERNAL, f"sampling failed: {type(error).__name__}: {error}")
                continue
            if drawn.logprobs_N is not None:
                logprobs_N[row] = drawn.logprobs_N[0]
            top[row] = drawn.top[0] if drawn.top else None
            if drawn.faults:
                faults[row] = drawn.faults[0]
        is_asked = not np.isnan(logprobs_N).all()
        on_host = DrawnRows(tokens_N.cpu().numpy(), logprobs_N if is_asked else None, tuple(top), faults)
        return on_host, tokens_N


def _take_best(scan: HostScan, asked: SelectedRows | None) -> DrawnRows:
    """What `Sampler` gives for rows that all take the best id, straight from the scan.

    `asked`: the rows that ask for log-probabilities.
    """
    # A copy: the scan lies in one piece with the logits, which a result that waits to be sent would keep alive.
    tokens_N, not_finite_N = scan.best_N.copy(), scan.not_finite_N
    faults = {}
    if not_finite_N.any():
        faults = _not_finite_faults(not_finite_N)
        tokens_N = np.where(not_finite_N, 0, tokens_N)
    logprobs_N = None
    if asked is not None:
        logprobs_N = scan.best_scores_N - scan.log_mass_N
        if not asked.is_all:
            is_silent_N = np.ones(len(tokens_N), dtype=bool)
            is_silent_N[asked.rows_G] = False
            logprobs_N[is_silent_N] = np.nan
    return DrawnRows(tokens_N=tokens_N, logprobs_N=logprobs_N, top=(), faults=faults)


def _not_finite_faults(not_finite_N: npt.NDArray[np.bool_]) -> dict[int, RowFault]:
    fault = RowFault(SlotErrorCode.NOT_FINITE, "the model gave logits that are not finite")
    return dict.fromkeys(np.flatnonzero(not_finite_N).tolist(), fault)
