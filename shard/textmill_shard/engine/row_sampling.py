"""Sampling of the rows of a step with the state of their slots; one row's fault stays that row's (rule 19)."""

# N rows that sample, V vocabulary

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.grammar.matcher import GrammarFault
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput, HostScan, RowScan
from textmill_shard.sampling.logprobs import TopTokens
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.slot_sampling import SlotSampling
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
    """Owns the sampling state of the slots; only rank 0 has one.

    State is built when a slot first samples and belongs to the Admit that seated the request (rule 18): the next
    occupant, or the same request admitted again, gets a new one.
    """

    def __init__(self, *, sampler: Sampler, finish_rules: FinishRules, grammars: GrammarSlots) -> None:
        self._sampler = sampler
        self._grammars = grammars
        self._finish_rules = finish_rules
        self._samplings: dict[int, SlotSampling] = {}  # by slot
        self._admits: dict[int, Admit] = {}  # whose state that is

    def prepare(self, table: SlotTable, slots_N: IdArray) -> None:
        """Begin what can be done beside the forward pass of the rows that are to sample."""
        self._grammars.start_masks(table, slots_N)

    def draw(self, table: SlotTable, slots_N: IdArray, output: ForwardOutput) -> DrawnRows:
        """One token per row of the logits. Waits for the device: tokens are needed on the host."""
        slots = slots_N.tolist()
        grammar_faults = self._take_masks(table, slots)
        samplings = [self._sampling_of(table, slot) for slot in slots]
        logits_NV = output.logits_NV
        try:
            if output.scan is not None and all(one.takes_best and one.allowed_V is None for one in samplings):
                drawn = _take_best(output.scan, samplings)
            else:
                drawn = self._draw(logits_NV, samplings, None if output.scan is None else output.scan.as_row_scan())
        except torch.AcceleratorError:
            raise  # the device is gone for everybody
        except Exception:
            drawn = self._draw_alone(table, slots, logits_NV)
        return replace(drawn, faults={**drawn.faults, **grammar_faults}) if grammar_faults else drawn

    def append(self, slots_N: IdArray, tokens_N: IdArray) -> None:
        """Note the tokens that count."""
        for slot, token in zip(slots_N.tolist(), tokens_N.tolist(), strict=True):
            self._samplings[slot].append(token)
        self._grammars.append(slots_N.tolist(), tokens_N.tolist())

    def _take_masks(self, table: SlotTable, slots: Sequence[int]) -> dict[int, RowFault]:
        """Give each row the ids that its grammar lets follow; rows whose matcher failed are named."""
        faults: dict[int, RowFault] = {}
        for row, slot in enumerate(slots):
            try:
                self._sampling_of(table, slot).allowed_V = self._grammars.mask(table, slot)
            except GrammarFault as fault:
                faults[row] = RowFault(SlotErrorCode.INTERNAL, str(fault))
        return faults

    def _sampling_of(self, table: SlotTable, slot: int) -> SlotSampling:
        admit = table.admit_of(slot)
        if self._admits.get(slot) is not admit:
            end_ids = self._finish_rules.ending_ids(admit.stop_ids, ignore_eos=admit.ignore_eos)
            params = replace(admit.sampling, end_ids=end_ids)
            self._samplings[slot] = SlotSampling(params, admit.text_ids.tolist(), admit.output_ids.tolist())
            self._admits[slot] = admit
        return self._samplings[slot]

    def _draw(
        self, logits_NV: torch.Tensor, samplings: Sequence[SlotSampling], scan: RowScan | None = None
    ) -> DrawnRows:
        sampled = self._sampler.sample(logits_NV, samplings, scan)
        not_finite_N: npt.NDArray[np.bool_] = sampled.not_finite_N.cpu().numpy()
        return DrawnRows(
            tokens_N=sampled.tokens_N.cpu().numpy().astype(np.int64),
            logprobs_N=None if sampled.logprobs_N is None else sampled.logprobs_N.cpu().numpy(),
            top=sampled.top,
            faults=_not_finite_faults(not_finite_N),
        )

    def _draw_alone(self, table: SlotTable, slots: Sequence[int], logits_NV: torch.Tensor) -> DrawnRows:
        """Each row by itself, to find whose fault it was. Draws do not depend on the neighbours."""
        tokens_N = np.zeros(len(slots), dtype=np.int64)
        logprobs_N = np.full(len(slots), np.nan, dtype=np.float32)
        top: list[TopTokens | None] = [None] * len(slots)
        faults: dict[int, RowFault] = {}
        for row, slot in enumerate(slots):
            try:
                drawn = self._draw(logits_NV[row : row + 1], [self._sampling_of(table, slot)])
            except torch.AcceleratorError:
                raise
            except Exception as error:
                faults[row] = RowFault(SlotErrorCode.INTERNAL, f"sampling failed: {type(error).__name__}: {error}")
                continue
            tokens_N[row] = drawn.tokens_N[0]
            if drawn.logprobs_N is not None:
                logprobs_N[row] = drawn.logprobs_N[0]
            top[row] = drawn.top[0] if drawn.top else None
            if drawn.faults:
                faults[row] = drawn.faults[0]
        is_asked = not np.isnan(logprobs_N).all()
        return DrawnRows(tokens_N, logprobs_N if is_asked else None, tuple(top), faults)


def _take_best(scan: HostScan, samplings: Sequence[SlotSampling]) -> DrawnRows:
    """What `Sampler` gives for rows that all take the best id, straight from the scan."""
    # A copy: the scan lies in one piece with the logits, which a result that waits to be sent would keep alive.
    tokens_N, not_finite_N = scan.best_N.copy(), scan.not_finite_N
    faults = {}
    if not_finite_N.any():
        faults = _not_finite_faults(not_finite_N)
        tokens_N = np.where(not_finite_N, 0, tokens_N)
    asked = [sampling.params.wants_logprobs for sampling in samplings]
    logprobs_N = None
    if any(asked):
        logprobs_N = scan.best_scores_N - scan.log_mass_N
        if not all(asked):
            logprobs_N[~np.array(asked)] = np.nan
    return DrawnRows(tokens_N=tokens_N, logprobs_N=logprobs_N, top=(), faults=faults)


def _not_finite_faults(not_finite_N: npt.NDArray[np.bool_]) -> dict[int, RowFault]:
    fault = RowFault(SlotErrorCode.NOT_FINITE, "the model gave logits that are not finite")
    return dict.fromkeys(np.flatnonzero(not_finite_N).tolist(), fault)
