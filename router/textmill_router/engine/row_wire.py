"""Turns batches of rows into messages of `textmill_proto`, and answers into the router's types.

Packed arrays are little-endian on the wire.
"""

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from textmill_proto.v1 import shard_pb2

from textmill_router.engine.wire import WireError
from textmill_router.tasks.rows import (
    Head,
    MaskAnswer,
    MaskWish,
    Numbers,
    Row,
    RowFault,
    RowResult,
    ScoredIds,
    Span,
    SpanAnswer,
    SpanWish,
    TaskFacts,
    TokenLabelWish,
    VectorWish,
)

_IS_BIG_ENDIAN = sys.byteorder == "big"


def task_facts_from_proto(message: shard_pb2.TaskFacts) -> TaskFacts:
    """Read the facts of a shard of rows."""
    return TaskFacts(
        protocol_version=message.protocol_version,
        model_id=message.model_id,
        model_sha=message.model_sha,
        model_type=message.model_type,
        dtype=message.dtype,
        device=message.device,
        task=message.task,
        heads=tuple(message.heads),
        labels=tuple(message.labels),
        problem_type=message.problem_type,
        max_row_tokens=message.max_row_tokens,
        max_batch_tokens=message.max_batch_tokens,
        counts_padding=message.counts_padding,
        vector_width=message.vector_width,
        token_vector_width=message.token_vector_width,
        is_normalized=message.is_normalized,
        vocab_size=message.vocab_size,
        num_token_types=message.num_token_types,
        mask_token_id=message.mask_token_id if message.HasField("mask_token_id") else None,
        tokenizer_digest=message.tokenizer_digest,
    )


def batch_to_proto(number: int, rows: Sequence[Row]) -> shard_pb2.RowBatch:
    """Return the message of a batch, whose rows ask for the same head."""
    has_types = any(row.token_types for row in rows)
    types = b"".join(row.token_types or bytes(len(row.token_ids)) for row in rows) if has_types else b""
    text = shard_pb2.TextRows(
        token_ids=b"".join(_packed(row.token_ids) for row in rows),
        lengths=_u32(len(row.token_ids) for row in rows),
        token_types=types,
    )
    head = rows[0].head
    message = shard_pb2.RowBatch(number=number, text=text)
    getattr(message, head.value).CopyFrom(_HEADS[head]([row.wish for row in rows]))
    return message


def answers_from_proto(message: shard_pb2.RowAnswers, number: int, rows: Sequence[Row]) -> list[RowResult | RowFault]:
    """Return the answer of each row in order. Raises WireError for an answer that does not fit the batch."""
    head = rows[0].head
    if message.number != number or message.WhichOneof("answer") != head.value:
        raise WireError(f"answer {message.number} of {message.WhichOneof('answer')} to batch {number} of {head.value}")
    faults = {failure.row: RowFault(failure.message) for failure in message.failures}
    answered = [row for index, row in enumerate(rows) if index not in faults]
    try:
        found = iter(list(_READERS[head](getattr(message, head.value), answered)))
        results = [faults[index] if index in faults else next(found) for index in range(len(rows))]
    except (StopIteration, IndexError, ValueError) as error:
        raise WireError(f"the arrays of batch {number} do not have the lengths of its rows") from error
    if next(found, None) is not None:
        raise WireError(f"batch {number} has more answers than rows")
    return results


def _vectors(wishes: Sequence[Any]) -> shard_pb2.VectorHead:
    asked: Sequence[VectorWish] = wishes
    return shard_pb2.VectorHead(
        dimensions=_u32(wish.dimensions for wish in asked) if any(wish.dimensions for wish in asked) else b"",
        normalized=bytes(wish.is_normalized for wish in asked),
        prompt_lengths=(
            _u32(wish.prompt_length for wish in asked) if any(wish.prompt_length for wish in asked) else b""
        ),
    )


def _token_labels(wishes: Sequence[Any]) -> shard_pb2.TokenLabelHead:
    asked: Sequence[TokenLabelWish] = wishes
    return shard_pb2.TokenLabelHead(is_wanted=b"".join(wish.is_wanted for wish in asked))


def _masks(wishes: Sequence[Any]) -> shard_pb2.MaskHead:
    asked: Sequence[MaskWish] = wishes
    return shard_pb2.MaskHead(
        mask_counts=_u32(len(wish.places) for wish in asked),
        positions=_u32(place for wish in asked for place in wish.places),
        top_k=_u32(wish.top_k for wish in asked),
        target_counts=_u32(len(wish.target_ids) for wish in asked),
        target_ids=_u32(target for wish in asked for target in wish.target_ids),
    )


def _spans(wishes: Sequence[Any]) -> shard_pb2.SpanHead:
    asked: Sequence[SpanWish] = wishes
    return shard_pb2.SpanHead(
        roles=b"".join(wish.roles for wish in asked),
        max_span_tokens=_u32(wish.max_span_tokens for wish in asked),
        max_spans=_u32(wish.max_spans for wish in asked),
    )


_HEADS: dict[Head, Callable[[Sequence[Any]], Any]] = {
    Head.VECTORS: _vectors,
    Head.TOKEN_VECTORS: lambda wishes: shard_pb2.TokenVectorHead(),
    Head.SPARSE_VECTORS: lambda wishes: shard_pb2.SparseVectorHead(),
    Head.LABELS: lambda wishes: shard_pb2.LabelHead(),
    Head.TOKEN_LABELS: _token_labels,
    Head.MASKS: _masks,
    Head.SPANS: _spans,
}


class _Reader:
    """Reads an array from its beginning to its end."""

    def __init__(self, code: str, data: bytes) -> None:
        self._array = _unpacked(code, data)
        self._place = 0

    def take(self, count: int) -> "array[Any]":
        part = self._array[self._place : self._place + count]
        if len(part) != count:
            raise IndexError(count)
        self._place += count
        return part

    def check_end(self) -> None:
        if self._place != len(self._array):
            raise IndexError(self._place)


def _read_vectors(answer: shard_pb2.VectorAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    values = _Reader("f", answer.values)
    for width in _unpacked("I", answer.widths):
        yield Numbers(width, values.take(width))
    values.check_end()


def _read_token_vectors(answer: shard_pb2.TokenVectorAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    values = _Reader("f", answer.values)
    for row in rows:
        yield Numbers(answer.width, values.take(answer.width * len(row.token_ids)))
    values.check_end()


def _read_sparse(answer: shard_pb2.SparseVectorAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    ids, weights = _Reader("I", answer.ids), _Reader("f", answer.weights)
    for count in _unpacked("I", answer.counts):
        yield ScoredIds(ids.take(count), weights.take(count))
    ids.check_end()


def _read_labels(answer: shard_pb2.LabelAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    logits = _Reader("f", answer.logits)
    for _ in rows:
        yield Numbers(answer.num_labels, logits.take(answer.num_labels))
    logits.check_end()


def _read_token_labels(answer: shard_pb2.TokenLabelAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    probabilities = _Reader("f", answer.probabilities)
    for row in rows:
        assert isinstance(row.wish, TokenLabelWish)
        yield Numbers(answer.num_labels, probabilities.take(answer.num_labels * sum(row.wish.is_wanted)))
    probabilities.check_end()


def _read_masks(answer: shard_pb2.MaskAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    counts = _Reader("I", answer.counts)
    ids, probabilities = _Reader("I", answer.ids), _Reader("f", answer.probabilities)
    for row in rows:
        assert isinstance(row.wish, MaskWish)
        of_masks = [
            ScoredIds(ids.take(count), probabilities.take(count)) for count in counts.take(len(row.wish.places))
        ]
        yield MaskAnswer(tuple(of_masks))
    ids.check_end()


def _read_spans(answer: shard_pb2.SpanAnswers, rows: Sequence[Row]) -> Iterator[RowResult]:
    starts, ends, scores = _Reader("I", answer.starts), _Reader("I", answer.ends), _Reader("f", answer.scores)
    for count, null_score in zip(_unpacked("I", answer.counts), _unpacked("f", answer.null_scores), strict=True):
        spans = zip(starts.take(count), ends.take(count), scores.take(count), strict=True)
        yield SpanAnswer(tuple(Span(start, end, score) for start, end, score in spans), null_score)
    starts.check_end()


_READERS: dict[Head, Callable[[Any, Sequence[Row]], Iterator[RowResult]]] = {
    Head.VECTORS: _read_vectors,
    Head.TOKEN_VECTORS: _read_token_vectors,
    Head.SPARSE_VECTORS: _read_sparse,
    Head.LABELS: _read_labels,
    Head.TOKEN_LABELS: _read_token_labels,
    Head.MASKS: _read_masks,
    Head.SPANS: _read_spans,
}


def _u32(values: Iterator[int]) -> bytes:
    return _packed(array("I", values))


def _packed(values: "array[int]") -> bytes:
    if _IS_BIG_ENDIAN:
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _unpacked(code: str, data: bytes) -> "array[Any]":
    values: array[Any] = array(code)
    values.frombytes(data)
    if _IS_BIG_ENDIAN:
        values.byteswap()
    return values
