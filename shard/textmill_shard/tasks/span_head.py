"""The best spans of a row, by the probabilities of their first and last tokens."""

# R rows, L tokens of the longest row, n tokens of a row

from collections.abc import Sequence

import numpy as np

from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.row_forward import RowForward
from textmill_shard.tasks.rows import Answer, FloatArray, Row, RowFailure, SpanParams, Spans

ANSWER, NO_ANSWER = 2, 1  # roles of tokens


class SpanHead:
    """Extractive question answering: p(start) x p(end) over the tokens of the context."""

    def compute(self, forward: RowForward, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        output = forward.run(forward.grid(rows))
        starts_RL = output.start_logits.float().cpu().numpy()
        ends_RL = output.end_logits.float().cpu().numpy()
        answers: list[Answer | RowFailure] = []
        for row, starts_L, ends_L in zip(rows, starts_RL, ends_RL, strict=True):
            assert isinstance(row.params, SpanParams)
            starts_n, ends_n = starts_L[: row.num_tokens], ends_L[: row.num_tokens]
            is_finite = np.isfinite(starts_n).all() and np.isfinite(ends_n).all()
            answers.append(best_spans(starts_n, ends_n, row.params) if is_finite else NOT_FINITE)
        return answers


def best_spans(starts_n: FloatArray, ends_n: FloatArray, params: SpanParams) -> Spans:
    """Return the spans with the largest products, of logits `[n]`.

    Probabilities are over the tokens with a role. A span begins and ends at a token of the role 2 and has at most
    `max_span_tokens` tokens. Spans of score 0 are left out.
    """
    start_p_n, end_p_n = _softmax(starts_n, params.roles_n), _softmax(ends_n, params.roles_n)
    null_score = float((start_p_n * end_p_n)[params.roles_n == NO_ANSWER].sum())
    may_answer_n = params.roles_n == ANSWER
    start_p_n, end_p_n = np.where(may_answer_n, start_p_n, 0), np.where(may_answer_n, end_p_n, 0)
    num_tokens = len(starts_n)
    width = min(params.max_span_tokens, num_tokens)
    # Row w of the window holds, for each start, the probability of the end that lies w tokens behind the start.
    padded = np.concatenate([end_p_n, np.zeros(width - 1, dtype=np.float32)])
    scores_nw = start_p_n[:, None] * np.lib.stride_tricks.sliding_window_view(padded, width)
    scores = scores_nw.ravel()
    num_wanted = min(params.max_spans, int(np.count_nonzero(scores)))
    if num_wanted < len(scores):
        best = np.argpartition(-scores, max(num_wanted - 1, 0))[:num_wanted]
    else:
        best = np.arange(len(scores))
    best = best[np.lexsort((best, -scores[best]))]  # of equal scores the earlier span comes first
    starts, widths = best // width, best % width
    return Spans(starts=starts, ends=starts + widths, scores=scores[best], null_score=null_score)


def _softmax(logits_n: FloatArray, roles_n: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> FloatArray:
    """Return the softmax over the tokens with a role, and 0 elsewhere."""
    masked_n = np.where(roles_n > 0, logits_n, np.float32(-np.inf))
    weights_n = np.exp(masked_n - masked_n.max())
    result: FloatArray = weights_n / weights_n.sum()
    return result
