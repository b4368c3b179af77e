"""From the outputs of a forward pass to the answers of its rows. What is large is reduced on the device."""

# R rows, L tokens of the longest row, D width of a token vector, W width of a vector, V vocabulary, C labels, M tokens

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from textmill_shard.tasks.pooling import Pooling
from textmill_shard.tasks.row_forward import RowForward
from textmill_shard.tasks.rows import (
    Answer,
    FailureCode,
    Filling,
    MaskParams,
    Row,
    RowFailure,
    SparseVector,
    TokenLabelParams,
    VectorParams,
)

NOT_FINITE = RowFailure(FailureCode.NOT_FINITE, "the model's result for this input is not finite (NaN or infinity)")


class Head(Protocol):
    """Computes the answers of some rows in one forward pass, in their order."""

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]: ...


class VectorHead:
    """One vector per row: pooled, through the layers behind the pooling, cut and normalized."""

    def __init__(self, pooling: Pooling, after: nn.Sequential, *, is_normalized: bool) -> None:
        self._pooling = pooling
        self._after = after
        self._is_normalized = is_normalized

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        grid = forward.grid(rows)
        params = [row.params if isinstance(row.params, VectorParams) else VectorParams() for row in rows]
        pooled_RD = self._pooling.pool(
            forward.run(grid).last_hidden_state,
            lengths_R=grid.lengths_R,
            prompt_lengths=[each.prompt_length for each in params],
        )
        vectors_RW = self._after(pooled_RD).float().cpu()
        answers: list[Answer | RowFailure] = []
        for vector_W, each in zip(vectors_RW, params, strict=True):
            kept = vector_W[: each.dimensions or None]
            if self._is_normalized if each.is_normalized is None else each.is_normalized:
                kept = nn.functional.normalize(kept, dim=0)
            answers.append(_finite(kept.numpy()))
        return answers


class TokenVectorHead:
    """The last hidden state of every token."""

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        hidden_RLD = forward.run(forward.grid(rows)).last_hidden_state.float().cpu().numpy()
        return [_finite(hidden_LD[: row.num_tokens]) for hidden_LD, row in zip(hidden_RLD, rows, strict=True)]


class SparseVectorHead:
    """Over the tokens of a row the maximum (or the sum) of log(1 + max(0, logit)) of every id of the vocabulary."""

    def __init__(self, *, is_max: bool) -> None:
        self._is_max = is_max

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        grid = forward.grid(rows)
        logits_TV = forward.logits_of(grid, grid.places_T)
        answers: list[Answer | RowFailure] = []
        start = 0
        for row in rows:
            logits_nV = logits_TV[start : start + row.num_tokens].float()
            start += row.num_tokens
            weights_nV = logits_nV.relu().log1p()
            weights_V = weights_nV.amax(dim=0) if self._is_max else weights_nV.sum(dim=0)
            if not bool(logits_nV.isfinite().all()):
                answers.append(NOT_FINITE)
                continue
            ids = weights_V.nonzero().squeeze(1)
            answers.append(SparseVector(ids=ids.cpu().numpy(), weights=weights_V[ids].cpu().numpy()))
        return answers


class LabelHead:
    """The raw scores of the labels."""

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        logits_RC = forward.run(forward.grid(rows)).logits.float().cpu().numpy()
        return [_finite(logits_C) for logits_C in logits_RC]


class TokenLabelHead:
    """The probabilities of the labels of the wanted tokens."""

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        grid = forward.grid(rows)
        probabilities_RLC = forward.run(grid).logits.float().softmax(dim=2)
        wanted = []
        for index, row in enumerate(rows):
            assert isinstance(row.params, TokenLabelParams)
            wanted.append(np.flatnonzero(row.params.is_wanted_n) + index * grid.num_columns)
        chosen_M = torch.from_numpy(np.concatenate(wanted)).to(probabilities_RLC.device)
        chosen_MC = probabilities_RLC.flatten(0, 1)[chosen_M].cpu().numpy()
        parts = np.split(chosen_MC, np.cumsum([len(places) for places in wanted])[:-1])
        return [_finite(part) for part in parts]


class MaskHead:
    """The best ids of masked tokens, with their probabilities over the whole vocabulary."""

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        grid = forward.grid(rows)
        params = [row.params for row in rows]
        chosen = np.concatenate(
            [
                each.positions + index * grid.num_columns
                for index, each in enumerate(params)
                if isinstance(each, MaskParams)
            ]
        )
        logits_MV = forward.logits_of(grid, torch.from_numpy(chosen).to(grid.input_ids_RL.device)).float()
        probabilities_MV = logits_MV.softmax(dim=1)
        answers: list[Answer | RowFailure] = []
        start = 0
        for each in params:
            assert isinstance(each, MaskParams)
            part_mV = probabilities_MV[start : start + len(each.positions)]
            is_finite = bool(logits_MV[start : start + len(each.positions)].isfinite().all())
            start += len(each.positions)
            answers.append(_best(part_mV, each) if is_finite else NOT_FINITE)
        return answers


def _best(probabilities_mV: torch.Tensor, params: MaskParams) -> tuple[Filling, ...]:
    targets = torch.from_numpy(params.target_ids).to(probabilities_mV.device) if len(params.target_ids) else None
    if targets is not None:
        probabilities_mV = probabilities_mV[:, targets]
    values_mk, places_mk = probabilities_mV.topk(min(params.top_k, probabilities_mV.shape[1]), dim=1)
    ids_mk = places_mk if targets is None else targets[places_mk]
    return tuple(
        Filling(ids=ids, probabilities=values)
        for ids, values in zip(ids_mk.cpu().numpy(), values_mk.cpu().numpy(), strict=True)
    )


def _finite(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Answer | RowFailure:
    return values if bool(np.isfinite(values).all()) else NOT_FINITE
