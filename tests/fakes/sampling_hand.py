"""Rows to sample, each with the request that has its slot, because a row is a function of the request (rule 18)."""

# N rows, V vocabulary

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from textmill_shard.engine.wish_upload import build_step_rows
from textmill_shard.model.forward_batch import RowScan
from textmill_shard.sampling.grammar_mask import GrammarMask
from textmill_shard.sampling.row_scan import RowScanner
from textmill_shard.sampling.row_selection import SelectedRows, StageRows, StepRows
from textmill_shard.sampling.sampler import DEFAULT_NUM_CANDIDATES, SampledRows, Sampler
from textmill_shard.sampling.stage import SlotText, Stage
from textmill_shard.sampling.watermark import DEFAULT_KEY, WatermarkKey
from textmill_shard.slots.sampling_params import SamplingParams

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Seat:
    """The request of a slot. `allowed_V` is the mask of the next draw, for a request with a grammar."""

    params: SamplingParams
    prompt: Sequence[int] = (1, 2, 3)
    output: Sequence[int] = ()
    allowed_V: npt.NDArray[np.bool_] | None = None

    def with_token(self, token: int) -> "Seat":
        """Return this request as admitted again with one more output token."""
        return Seat(self.params, self.prompt, [*self.output, token], self.allowed_V)

    @property
    def text(self) -> SlotText:
        return SlotText(np.array(self.prompt, dtype=np.int64), np.array(self.output, dtype=np.int64))


def seated_sampler(
    seats: Sequence[Seat],
    *,
    num_candidates: int = DEFAULT_NUM_CANDIDATES,
    watermark: WatermarkKey = DEFAULT_KEY,
    scanner: RowScanner | None = None,
) -> Sampler:
    """Return a sampler that has seat s in slot s."""
    sampler = Sampler(
        num_slots=len(seats), device=CPU, num_candidates=num_candidates, watermark=watermark, scanner=scanner
    )
    for slot, seat in enumerate(seats):
        sampler.admit(slot, seat.params, seat.text)
        if seat.allowed_V is not None:
            sampler.grammar_mask.set_allowed(slot, seat.allowed_V)
    return sampler


def step_rows(sampler: Sampler, slots: Sequence[int]) -> StepRows:
    """Return the rows of a step in which these slots sample."""
    return build_step_rows(sampler.select(np.array(slots, dtype=np.int64)), CPU)


def sample(
    logits_NV: torch.Tensor,
    seats: Sequence[Seat],
    *,
    num_candidates: int = DEFAULT_NUM_CANDIDATES,
    watermark: WatermarkKey = DEFAULT_KEY,
    scanner: RowScanner | None = None,
    scan: RowScan | None = None,
) -> SampledRows:
    """Sample one token for each seat."""
    sampler = seated_sampler(seats, num_candidates=num_candidates, watermark=watermark, scanner=scanner)
    return sampler.sample(logits_NV, step_rows(sampler, range(len(seats))), scan)


def staged_scores(logits_NV: torch.Tensor, seats: Sequence[Seat], stage: Stage) -> torch.Tensor:
    """Return the scores after one stage alone. The stage has `len(seats)` slots, and skips rows that do not want it."""
    scores_NV = logits_NV.clone()
    wanting = [row for row, seat in enumerate(seats) if stage.wants(seat.params)]
    for row in wanting:
        stage.admit(row, seats[row].params, seats[row].text)
        if isinstance(stage, GrammarMask):
            allowed_V = seats[row].allowed_V
            assert allowed_V is not None
            stage.set_allowed(row, allowed_V)
    if wanting:
        stage.apply(scores_NV, rows_of(wanting, is_all=len(wanting) == len(seats)))
    return scores_NV


def rows_of(slots: Sequence[int], *, is_all: bool) -> StageRows:
    """Return the rows of a step in which slot s has row s."""
    ids = np.array(slots, dtype=np.int64)
    return StageRows(torch.from_numpy(ids), torch.from_numpy(ids), SelectedRows(ids, ids, is_all=is_all))


def random_logits(num_rows: int, *, vocab: int = 50, width: float = 4.0, seed: int = 3) -> torch.Tensor:
    """Return random logits, [num_rows, vocab] float32."""
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * width
