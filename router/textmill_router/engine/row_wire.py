"""Turns batches of rows into messages of `textmill_proto`, and answers into the router's types.

Packed arrays are little-endian on the wire.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from textmill_proto.v1 import shard_pb2

from textmill_router.engine.wire import WireError
from textmill_router.tasks.row_results import (
    BatchAnswers,
    Box,
    BoxAnswer,
    CellAnswer,
    CellChoice,
    DepthAnswer,
    DocumentAnswer,
    Grid,
    MaskAnswer,
    Numbers,
    RowFault,
    RowResult,
    ScoredIds,
    Segment,
    SegmentAnswer,
    SegmentMeasures,
    SoundAnswer,
    Span,
    SpanAnswer,
    TranscriptAnswer,
    TranscriptPart,
    WritingAnswer,
)
from textmill_router.tasks.rows import AnyRow, FileRow, Row, StringRow, TableRow
from textmill_router.tasks.task_facts import TaskFacts
from textmill_router.tasks.wishes import (
    BoxWish,
    DocumentWish,
    Head,
    MaskWish,
    SegmentWish,
    SoundFormat,
    SoundWish,
    SpanWish,
    Timestamps,
    TokenLabelWish,
    TranscriptWish,
    VectorWish,
    WritingWish,
)

_IS_BIG_ENDIAN = sys.byteorder == "big"
_OF_CLIENT = (shard_pb2.ROW_FAILURE_CODE_BAD_MEDIA, shard_pb2.ROW_FAILURE_CODE_BAD_TEXT)
_SOUND_FORMATS = {
    SoundFormat.FLAC: shard_pb2.SOUND_FORMAT_FLAC,
    SoundFormat.WAV: shard_pb2.SOUND_FORMAT_WAV,
    SoundFormat.OGG: shard_pb2.SOUND_FORMAT_OGG,
    SoundFormat.MP3: shard_pb2.SOUND_FORMAT_MP3,
    SoundFormat.OPUS: shard_pb2.SOUND_FORMAT_OPUS,
    SoundFormat.PCM: shard_pb2.SOUND_FORMAT_PCM,
}
_TIMESTAMPS = {
    Timestamps.NONE: shard_pb2.TIMESTAMPS_NONE,
    Timestamps.SEGMENTS: shard_pb2.TIMESTAMPS_SEGMENTS,
    Timestamps.WORDS: shard_pb2.TIMESTAMPS_WORDS,
    Timestamps.CHARACTERS: shard_pb2.TIMESTAMPS_CHARACTERS,
}


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
        media=message.media,
        max_batch_files=message.max_batch_files,
        languages=tuple(message.languages),
        subtasks=tuple(message.subtasks),
        num_speakers=message.num_speakers,
    )


def batch_to_proto(number: int, rows: Sequence[AnyRow]) -> shard_pb2.RowBatch:
    """Return the message of a batch, whose rows ask for the same head."""
    head = rows[0].head
    files = [row for row in rows if isinstance(row, FileRow)]
    tables = [row for row in rows if isinstance(row, TableRow)]
    strings = [row.text for row in rows if isinstance(row, StringRow)]
    if files:
        message = shard_pb2.RowBatch(number=number, media=_media(files))
    elif tables:
        message = shard_pb2.RowBatch(number=number, tables=_tables(tables))
    elif strings:
        message = shard_pb2.RowBatch(number=number, strings=shard_pb2.StringRows(texts=strings))
    else:
        message = shard_pb2.RowBatch(number=number, text=_text([row for row in rows if isinstance(row, Row)]))
    getattr(message, head.value).CopyFrom(_HEADS[head]([row.wish for row in rows]))
    return message


def _media(rows: Sequence[FileRow]) -> shard_pb2.MediaRows:
    has_texts = any(row.texts for row in rows)
    return shard_pb2.MediaRows(
        files=[row.file for row in rows],
        texts=[shard_pb2.RowTexts(texts=row.texts) for row in rows] if has_texts else [],
    )


def _tables(rows: Sequence[TableRow]) -> shard_pb2.TableRows:
    return shard_pb2.TableRows(
        tables=[
            shard_pb2.Table(
                columns=row.columns, cells=row.cells, questions=row.questions, is_sequential=row.is_sequential
            )
            for row in rows
        ]
    )


def _text(rows: Sequence[Row]) -> shard_pb2.TextRows:
    has_types = any(row.token_types for row in rows)
    types = b"".join(row.token_types or bytes(len(row.token_ids)) for row in rows) if has_types else b""
    return shard_pb2.TextRows(
        token_ids=b"".join(_packed(row.token_ids) for row in rows),
        lengths=_u32(len(row.token_ids) for row in rows),
        token_types=types,
    )


def answers_from_proto(message: shard_pb2.RowAnswers, number: int, rows: Sequence[AnyRow]) -> BatchAnswers:
    """Return the answer of each row in order. Raises WireError for an answer that does not fit the batch."""
    head = rows[0].head
    if message.number != number or message.WhichOneof("answer") != head.value:
        raise WireError(f"answer {message.number} of {message.WhichOneof('answer')} to batch {number} of {head.value}")
    faults = {
        failure.row: RowFault(
            failure.message,
            is_of_client=failure.code in _OF_CLIENT,
            is_of_text=failure.code == shard_pb2.ROW_FAILURE_CODE_BAD_TEXT,
        )
        for failure in message.failures
    }
    answered = [row for index, row in enumerate(rows) if index not in faults]
    try:
        found = iter(list(_READERS[head](getattr(message, head.value), answered)))
        results = [faults[index] if index in faults else next(found) for index in range(len(rows))]
        audio_seconds = _unpacked("f", message.audio_seconds)
        num_tokens = _unpacked("I", message.num_tokens)
    except (StopIteration, IndexError, ValueError) as error:
        raise WireError(f"the arrays of batch {number} do not have the lengths of its rows") from error
    if next(found, None) is not None:
        raise WireError(f"batch {number} has more answers than rows")
    if len(audio_seconds) not in (0, len(rows)):
        raise WireError(f"batch {number} has {len(audio_seconds)} lengths of audio for {len(rows)} rows")
    if len(num_tokens) not in (0, len(rows)):
        raise WireError(f"batch {number} has {len(num_tokens)} numbers of tokens for {len(rows)} rows")
    return BatchAnswers(
        [_timed(*each) for each in zip(results, audio_seconds or [0.0] * len(rows), strict=True)],
        audio_seconds,
        num_tokens,
    )


def _timed(result: RowResult | RowFault, seconds: float) -> RowResult | RowFault:
    """Return a result that tells how long its audio is, where the answer to the call may say so."""
    return replace(result, seconds=seconds) if isinstance(result, TranscriptAnswer) else result


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


def _boxes(wishes: Sequence[Any]) -> shard_pb2.BoxHead:
    asked: Sequence[BoxWish] = wishes
    return shard_pb2.BoxHead(thresholds=_f32(wish.threshold for wish in asked))


def _transcripts(wishes: Sequence[Any]) -> shard_pb2.TranscriptHead:
    asked: Sequence[TranscriptWish] = wishes
    return shard_pb2.TranscriptHead(
        timestamps=[_TIMESTAMPS[wish.timestamps] for wish in asked],
        languages=[wish.language for wish in asked],
        translates=bytes(wish.translates for wish in asked),
        max_new_tokens=_u32(wish.max_new_tokens for wish in asked),
        num_beams=_u32(wish.num_beams for wish in asked),
        chunk_lengths=_f32(wish.chunk_s for wish in asked),
        stride_lengths=_f32(wish.stride_s for wish in asked),
        prompts=[wish.prompt for wish in asked] if any(wish.prompt for wish in asked) else [],
        measured=bytes(wish.is_measured for wish in asked),
    )


def _segments(wishes: Sequence[Any]) -> shard_pb2.SegmentHead:
    asked: Sequence[SegmentWish] = wishes
    return shard_pb2.SegmentHead(
        thresholds=_f32(wish.threshold for wish in asked),
        mask_thresholds=_f32(wish.mask_threshold for wish in asked),
        overlap_thresholds=_f32(wish.overlap_threshold for wish in asked),
        subtasks=[wish.subtask for wish in asked],
    )


def _writings(wishes: Sequence[Any]) -> shard_pb2.WritingHead:
    asked: Sequence[WritingWish] = wishes
    return shard_pb2.WritingHead(wishes=[shard_pb2.WritingWish(**asdict(wish)) for wish in asked])


def _documents(wishes: Sequence[Any]) -> shard_pb2.DocumentHead:
    asked: Sequence[DocumentWish] = wishes
    return shard_pb2.DocumentHead(
        boxes=b"".join(_packed(wish.boxes) for wish in asked),
        max_window_tokens=_u32(wish.max_window_tokens for wish in asked),
        strides=_u32(wish.stride for wish in asked),
        max_span_tokens=_u32(wish.max_span_tokens for wish in asked),
        max_spans=_u32(wish.max_spans for wish in asked),
    )


def _sounds(wishes: Sequence[Any]) -> shard_pb2.SoundHead:
    asked: Sequence[SoundWish] = wishes
    return shard_pb2.SoundHead(
        wishes=[
            shard_pb2.SoundWish(
                format=_SOUND_FORMATS[wish.sound_format],
                seed=wish.seed,
                speaker=wish.speaker,
                speaking_rate=wish.speaking_rate,
                noise_scale=wish.noise_scale,
                noise_scale_duration=wish.noise_scale_duration,
                speed=wish.speed,
            )
            for wish in asked
        ]
    )


_HEADS: dict[Head, Callable[[Sequence[Any]], Any]] = {
    Head.VECTORS: _vectors,
    Head.TOKEN_VECTORS: lambda wishes: shard_pb2.TokenVectorHead(),
    Head.SPARSE_VECTORS: lambda wishes: shard_pb2.SparseVectorHead(),
    Head.LABELS: lambda wishes: shard_pb2.LabelHead(),
    Head.TOKEN_LABELS: _token_labels,
    Head.MASKS: _masks,
    Head.SPANS: _spans,
    Head.BOXES: _boxes,
    Head.TRANSCRIPTS: _transcripts,
    Head.SEGMENTS: _segments,
    Head.PAIR_SCORES: lambda wishes: shard_pb2.PairScoreHead(),
    Head.DEPTHS: lambda wishes: shard_pb2.DepthHead(),
    Head.WRITINGS: _writings,
    Head.DOCUMENTS: _documents,
    Head.CELLS: lambda wishes: shard_pb2.CellHead(),
    Head.SOUNDS: _sounds,
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


def _read_vectors(answer: shard_pb2.VectorAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    values = _Reader("f", answer.values)
    for width in _unpacked("I", answer.widths):
        yield Numbers(width, values.take(width))
    values.check_end()


def _read_token_vectors(answer: shard_pb2.TokenVectorAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    values = _Reader("f", answer.values)
    for row in rows:
        yield Numbers(answer.width, values.take(answer.width * row.num_tokens))
    values.check_end()


def _read_sparse(answer: shard_pb2.SparseVectorAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    ids, weights = _Reader("I", answer.ids), _Reader("f", answer.weights)
    for count in _unpacked("I", answer.counts):
        yield ScoredIds(ids.take(count), weights.take(count))
    ids.check_end()


def _read_labels(answer: shard_pb2.LabelAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    logits = _Reader("f", answer.logits)
    for _ in rows:
        yield Numbers(answer.num_labels, logits.take(answer.num_labels))
    logits.check_end()


def _read_token_labels(answer: shard_pb2.TokenLabelAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    probabilities = _Reader("f", answer.probabilities)
    for row in rows:
        assert isinstance(row.wish, TokenLabelWish)
        yield Numbers(answer.num_labels, probabilities.take(answer.num_labels * sum(row.wish.is_wanted)))
    probabilities.check_end()


def _read_masks(answer: shard_pb2.MaskAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    counts = _Reader("I", answer.counts)
    ids, probabilities = _Reader("I", answer.ids), _Reader("f", answer.probabilities)
    for row in rows:
        assert isinstance(row.wish, MaskWish)
        of_masks = [
            ScoredIds(ids.take(count), probabilities.take(count)) for count in counts.take(len(row.wish.places))
        ]
        yield MaskAnswer(tuple(of_masks))
    ids.check_end()


def _read_spans(answer: shard_pb2.SpanAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    starts, ends, scores = _Reader("I", answer.starts), _Reader("I", answer.ends), _Reader("f", answer.scores)
    for count, null_score in zip(_unpacked("I", answer.counts), _unpacked("f", answer.null_scores), strict=True):
        spans = zip(starts.take(count), ends.take(count), scores.take(count), strict=True)
        yield SpanAnswer(tuple(Span(start, end, score) for start, end, score in spans), null_score)
    starts.check_end()


def _read_boxes(answer: shard_pb2.BoxAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    labels, scores, corners = _Reader("I", answer.label_ids), _Reader("f", answer.scores), _Reader("I", answer.boxes)
    for count in _unpacked("I", answer.counts):
        found = zip(labels.take(count), scores.take(count), strict=True)
        yield BoxAnswer(tuple(Box(label, score, corners.take(4)) for label, score in found))
    labels.check_end()
    corners.check_end()


def _read_transcripts(answer: shard_pb2.TranscriptAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    for found in answer.transcripts:
        yield TranscriptAnswer(found.text, _parts(found.chunks), found.language, _parts(found.segments))


def _parts(chunks: Iterable[shard_pb2.TranscriptChunk]) -> tuple[TranscriptPart, ...]:
    return tuple(
        TranscriptPart(
            chunk.text,
            chunk.start_s,
            chunk.end_s if chunk.HasField("end_s") else None,
            _measures(chunk.measures) if chunk.HasField("measures") else None,
        )
        for chunk in chunks
    )


def _measures(found: shard_pb2.SegmentMeasures) -> SegmentMeasures:
    return SegmentMeasures(
        found.seek,
        tuple(_unpacked("I", found.token_ids)),
        found.avg_logprob,
        found.compression_ratio,
        found.no_speech_prob,
    )


def _read_segments(answer: shard_pb2.SegmentAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    labels, scores, masks = _Reader("I", answer.label_ids), _Reader("f", answer.scores), iter(answer.masks)
    for count, has_scores in zip(_unpacked("I", answer.counts), answer.has_scores, strict=True):
        own_scores = scores.take(count) if has_scores else [None] * count
        found = zip(labels.take(count), own_scores, strict=True)
        yield SegmentAnswer(tuple(Segment(label, score, next(masks)) for label, score in found))
    labels.check_end()
    scores.check_end()


def _read_pair_scores(answer: shard_pb2.PairScoreAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    scores = _Reader("f", answer.scores)
    for count, row in zip(_unpacked("I", answer.counts), rows, strict=True):
        if not isinstance(row, FileRow) or count != len(row.texts):
            raise IndexError(count)
        yield Numbers(count, scores.take(count))
    scores.check_end()


def _read_depths(answer: shard_pb2.DepthAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    depths, heights, widths = _Reader("f", answer.depths), _unpacked("I", answer.heights), _unpacked("I", answer.widths)
    for height, width, picture in zip(heights, widths, answer.pictures, strict=True):
        yield DepthAnswer(Grid(width, depths.take(height * width)), picture)
    depths.check_end()


def _read_writings(answer: shard_pb2.WritingAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    for found in answer.writings:
        yield WritingAnswer(
            found.text, found.probability if found.HasField("probability") else None, is_drawn=found.is_drawn
        )


def _read_documents(answer: shard_pb2.DocumentAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    starts, ends, scores = _Reader("I", answer.starts), _Reader("I", answer.ends), _Reader("f", answer.scores)
    for count, null_score in zip(_unpacked("I", answer.counts), _unpacked("f", answer.null_scores), strict=True):
        spans = zip(starts.take(count), ends.take(count), scores.take(count), strict=True)
        yield DocumentAnswer(tuple(Span(start, end, score) for start, end, score in spans), null_score)
    starts.check_end()


def _read_cells(answer: shard_pb2.CellAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    in_rows, in_columns = _Reader("I", answer.rows), _Reader("I", answer.columns)
    questions = zip(
        _unpacked("I", answer.counts),
        _unpacked("I", answer.label_ids),
        answer.is_plain,
        _unpacked("I", answer.num_kept),
        answer.is_cut or bytes(len(answer.is_plain)),
        strict=True,
    )
    choices = iter(
        [
            CellChoice(
                tuple(zip(in_rows.take(count), in_columns.take(count), strict=True)),
                label_id - 1 if label_id else None,
                bool(is_plain),
                num_kept,
                bool(is_cut),
            )
            for count, label_id, is_plain, num_kept, is_cut in questions
        ]
    )
    for row in rows:
        assert isinstance(row, TableRow)
        yield CellAnswer(tuple(_following(choices) for _ in row.questions))
    in_rows.check_end()
    in_columns.check_end()
    if next(choices, None) is not None:
        raise IndexError("more questions than the rows have")


def _following(choices: Iterator[CellChoice]) -> CellChoice:
    found = next(choices, None)
    if found is None:
        raise IndexError("fewer questions than the rows have")
    return found


def _read_sounds(answer: shard_pb2.SoundAnswers, rows: Sequence[AnyRow]) -> Iterator[RowResult]:
    for file in answer.files:
        yield SoundAnswer(file)


_READERS: dict[Head, Callable[[Any, Sequence[AnyRow]], Iterator[RowResult]]] = {
    Head.VECTORS: _read_vectors,
    Head.TOKEN_VECTORS: _read_token_vectors,
    Head.SPARSE_VECTORS: _read_sparse,
    Head.LABELS: _read_labels,
    Head.TOKEN_LABELS: _read_token_labels,
    Head.MASKS: _read_masks,
    Head.SPANS: _read_spans,
    Head.BOXES: _read_boxes,
    Head.TRANSCRIPTS: _read_transcripts,
    Head.SEGMENTS: _read_segments,
    Head.PAIR_SCORES: _read_pair_scores,
    Head.DEPTHS: _read_depths,
    Head.WRITINGS: _read_writings,
    Head.DOCUMENTS: _read_documents,
    Head.CELLS: _read_cells,
    Head.SOUNDS: _read_sounds,
}


def _u32(values: Iterator[int]) -> bytes:
    return _packed(array("I", values))


def _f32(values: Iterator[float]) -> bytes:
    return _packed(array("f", values))


def _packed(values: "array[Any]") -> bytes:
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
