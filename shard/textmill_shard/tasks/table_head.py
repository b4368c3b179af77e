"""Answers questions about tables: the cells that TAPAS chooses, and what is to be done with them.

The formula is that of transformers' pipeline: a cell counts where its tokens' mean probability is above a half.
"""

# n tokens of a question with its table

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from textmill_shard.device import is_device_gone
from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.rows import (
    Answer,
    CellAnswer,
    CellChoice,
    FailureCode,
    FloatArray,
    HeadName,
    RowFailure,
)
from textmill_shard.tasks.table_reader import COLUMN, PREVIOUS, ROW, SEGMENT, ReadyTable

_LEAST_LOGIT = -88.7  # exp of the number behind is infinite in float32
_HALF = 0.5


class TableRunner:
    """The model. One thread calls `run`. Questions are computed one by one, without padding."""

    def __init__(self, model: Any, *, device: torch.device) -> None:
        self._model = model
        self._device = device
        config = model.config
        self._aggregates = bool(config.aggregation_labels) and bool(config.num_aggregation_labels)
        self._plain_label: int | None = config.no_aggregation_label_index
        self.num_memory_faults = 0

    @torch.inference_mode()
    def run(
        self, head: HeadName, rows: Sequence[Any], *, on_part: Callable[[int], None] = lambda num_tokens: None
    ) -> list[Answer | RowFailure]:
        """Return the answers in the order of the tables. A table that could not be read keeps its failure."""
        return [row if isinstance(row, RowFailure) else self._compute(row, on_part) for row in rows]

    def _compute(self, table: ReadyTable, on_part: Callable[[int], None]) -> Answer | RowFailure:
        chosen: dict[tuple[int, int], bool] = {}  # of the question before, by row and column
        choices: list[CellChoice] = []
        for ids, types, num_kept, is_cut in zip(table.ids, table.types, table.num_kept, table.is_cut, strict=True):
            on_part(0)
            if table.is_sequential and choices:
                types = _with_previous(types, chosen)
            try:
                found = self._forward(ids, types)
            except Exception as error:
                has_no_memory = is_out_of_memory(error)
                if not has_no_memory and (not isinstance(error, CALL_ERRORS) or is_device_gone(error)):
                    raise
                self.num_memory_faults += has_no_memory
                code = FailureCode.NO_MEMORY if has_no_memory else FailureCode.INTERNAL
                return RowFailure(code, f"the model cannot read this table ({type(error).__name__}: {error})")
            logits_n, scores = found
            if not np.isfinite(logits_n).all() or (scores is not None and not np.isfinite(scores).all()):
                return RowFailure(FailureCode.NOT_FINITE, "the model's result is not a number")
            chosen = _chosen_cells(logits_n, types)
            cells = sorted(place for place, is_chosen in chosen.items() if is_chosen)
            label = None if scores is None else int(scores.argmax())
            choices.append(CellChoice(cells, label, label in (None, self._plain_label), num_kept, is_cut))
        return CellAnswer(choices)

    def _forward(self, ids: torch.Tensor, types: torch.Tensor) -> tuple[FloatArray, FloatArray | None]:
        """Return the logits `[n]` of the tokens, and the scores of what is to be done, where the model has some."""
        output = self._model(
            input_ids=ids[None].to(self._device),
            token_type_ids=types[None].to(self._device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._device),
        )
        scores = output.logits_aggregation[0].float().cpu().numpy() if self._aggregates else None
        return output.logits[0].float().cpu().numpy(), scores


def _chosen_cells(logits_n: FloatArray, types: torch.Tensor) -> dict[tuple[int, int], bool]:
    """Return for each cell, by row and column from 0 on, whether the cell belongs to the answer."""
    probabilities = 1 / (1 + np.exp(-np.maximum(logits_n, _LEAST_LOGIT)))
    of_cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for probability, of_token in zip(probabilities.tolist(), types.tolist(), strict=True):
        if of_token[SEGMENT] == 1 and of_token[COLUMN] and of_token[ROW]:
            of_cells[of_token[ROW] - 1, of_token[COLUMN] - 1].append(probability)
    return {place: bool(np.mean(found) > _HALF) for place, found in of_cells.items()}


def _with_previous(types: torch.Tensor, chosen: dict[tuple[int, int], bool]) -> torch.Tensor:
    """Return the token types of a question that follows another one, with the cells of the answer before."""
    written = types.clone()
    for place, of_token in enumerate(types.tolist()):
        cell = (of_token[ROW] - 1, of_token[COLUMN] - 1)
        written[place, PREVIOUS] = int(of_token[SEGMENT] == 1 and chosen.get(cell, False))
    return written
