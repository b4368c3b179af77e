"""The words of a page that answer a question, by models that read words with their places on the page.

The formula is that of the pipeline of transformers 4.57: windows of the words that overlap, softmax over the tokens of
the words and the token that stands for no answer, and p(start) x p(end). Unlike there, answers of equal words are one
answer with the best of their scores: spans of other tokens of two words, and spans of windows that overlap.
"""

# W words of the page, n tokens of a window

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import (
    Answer,
    DocumentParams,
    FailureCode,
    FloatArray,
    IdArray,
    PageSpans,
    RowFailure,
    SpanParams,
)
from textmill_shard.tasks.span_head import ANSWER, NO_ANSWER, best_spans

MAX_WINDOWS = 256  # of one page
_SEPARATOR_BOX = (1000, 1000, 1000, 1000)
_NO_BOX = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Window:
    """A question and a part of the words, as the model reads them."""

    inputs: dict[str, torch.Tensor]  # `[1, n]`, the boxes `[1, n, 4]`
    roles_n: np.ndarray[tuple[int], np.dtype[np.uint8]]
    words_n: IdArray  # number of the token's word, -1 without one


class DocumentHead:
    """Computes one page at a time, a window after the other."""

    def __init__(
        self, model: Any, tokenizer: Any, *, max_window_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.max_window_tokens = max_window_tokens
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        # Tokenizers of LayoutLMv3's kind take the boxes, and split the question themselves.
        self._takes_boxes = "boxes" in inspect.signature(tokenizer.__call__).parameters

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._answer(row, on_sign) for row in rows]

    def _answer(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        params = row.params
        assert isinstance(params, DocumentParams)
        question, *words = row.texts
        num_question = self._count_question(question)
        room = params.max_window_tokens - num_question
        if room < params.stride + 1:
            return RowFailure(
                FailureCode.BAD_TEXT,
                f"the question has {num_question} tokens with the special ones and leaves {max(0, room)} of "
                f"{params.max_window_tokens} for the words, which need more than `doc_stride`, {params.stride}; "
                "shorten the question or lower `parameters.doc_stride`",
            )
        picture = stack([row], device=self._device, dtype=self._dtype) if row.inputs else {}
        found: list[PageSpans] = []
        for window in self._windows(question, words, params):
            if len(found) == MAX_WINDOWS:
                return RowFailure(
                    FailureCode.BAD_TEXT,
                    f"the words make more than {MAX_WINDOWS} windows of {params.max_window_tokens} tokens; send fewer "
                    "words or lower `parameters.doc_stride`",
                )
            if not (window.roles_n == ANSWER).any():
                continue
            on_sign()
            output = self._model(**window.inputs, **picture)
            num_tokens = len(window.roles_n)  # a model of pictures has further places behind the tokens
            starts_n = output.start_logits[0, :num_tokens].float().cpu().numpy()
            ends_n = output.end_logits[0, :num_tokens].float().cpu().numpy()
            if not (np.isfinite(starts_n).all() and np.isfinite(ends_n).all()):
                return NOT_FINITE
            found.append(_in_words(starts_n, ends_n, window, params))
        if not found:
            return RowFailure(
                FailureCode.BAD_TEXT, "the words of `parameters.word_boxes` have no token; send other words"
            )
        return _best(found, params.max_spans)

    def _count_question(self, question: str) -> int:
        """Return the tokens of a question, with the special tokens of a question and its words."""
        tokenizer = self._tokenizer.backend_tokenizer
        tokenizer.no_truncation()  # of the page before
        encoded = tokenizer.encode(question.split(), is_pretokenized=True, add_special_tokens=False)
        return len(encoded.ids) + int(self._tokenizer.num_special_tokens_to_add(pair=True))

    def _windows(self, question: str, words: list[str], params: DocumentParams) -> Iterator[_Window]:
        options = {
            "max_length": params.max_window_tokens,
            "stride": params.stride,
            "truncation": "only_second",
            "return_overflowing_tokens": True,
            "return_token_type_ids": True,
        }
        if self._takes_boxes:
            found = self._tokenizer([question], [words], boxes=[params.boxes.tolist()], **options)
        else:
            found = self._tokenizer(question.split(), words, is_split_into_words=True, **options)
        for index in range(len(found["input_ids"])):
            yield self._window(found, index, params)

    def _window(self, found: Any, index: int, params: DocumentParams) -> _Window:
        ids, parts, words = found["input_ids"][index], found.sequence_ids(index), found.word_ids(index)
        is_word = [part == 1 for part in parts]
        if self._takes_boxes:
            boxes = found["bbox"][index]
        else:
            separator = self._tokenizer.sep_token_id
            boxes = [
                params.boxes[word].tolist() if of_word else _SEPARATOR_BOX if token == separator else _NO_BOX
                for token, word, of_word in zip(ids, words, is_word, strict=True)
            ]
        inputs = {name: torch.tensor([found[name][index]]) for name in self._input_names(found)}
        inputs["bbox"] = torch.tensor([boxes])
        cls_id = self._tokenizer.cls_token_id
        roles = [
            ANSWER if of_word else NO_ANSWER * (token == cls_id) for token, of_word in zip(ids, is_word, strict=True)
        ]
        return _Window(
            inputs={name: tensor.to(self._device) for name, tensor in inputs.items()},
            roles_n=np.array(roles, dtype=np.uint8),
            words_n=np.array([word if of_word else -1 for word, of_word in zip(words, is_word, strict=True)]),
        )

    def _input_names(self, found: Any) -> list[str]:
        return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in found]


def _in_words(starts_n: FloatArray, ends_n: FloatArray, window: _Window, params: DocumentParams) -> PageSpans:
    """Return the best spans of a window, each pair of first and last word once."""
    num_wanted = params.max_spans
    while True:
        wish = SpanParams(window.roles_n, max_span_tokens=params.max_span_tokens, max_spans=num_wanted)
        spans = best_spans(starts_n, ends_n, wish)
        found = _distinct(window.words_n[spans.starts], window.words_n[spans.ends], spans.scores, spans.null_score)
        if len(found.scores) >= params.max_spans or len(spans.scores) < num_wanted:
            return found
        num_wanted *= 4


def _distinct(starts: IdArray, ends: IdArray, scores: FloatArray, null_score: float) -> PageSpans:
    """Return the spans without those whose first and last word a span before has."""
    _, first = np.unique(np.stack([starts, ends]), axis=1, return_index=True)
    kept = np.sort(first)
    return PageSpans(starts[kept], ends[kept], scores[kept], null_score)


def _best(found: Sequence[PageSpans], max_spans: int) -> PageSpans:
    """Return the best spans of all windows; of equal scores the span of the earlier window comes first."""
    scores = np.concatenate([each.scores for each in found])
    order = np.argsort(-scores, kind="stable")
    spans = _distinct(
        np.concatenate([each.starts for each in found])[order],
        np.concatenate([each.ends for each in found])[order],
        scores[order],
        min(each.null_score for each in found),
    )
    return PageSpans(spans.starts[:max_spans], spans.ends[:max_spans], spans.scores[:max_spans], spans.null_score)
