"""Turns the messages of rows into the shard's own types, and the shard's types into messages."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2 as pb

from textmill_shard.tasks.batch_check import BatchRejected
from textmill_shard.tasks.rows import (
    Answer,
    Boxes,
    BoxParams,
    CellAnswer,
    Depth,
    DocumentParams,
    FailureCode,
    Filling,
    FloatArray,
    HeadName,
    IdArray,
    MaskParams,
    MediaRow,
    PageSpans,
    Params,
    Row,
    RowAnswers,
    RowBatch,
    RowFailure,
    SegmentMeasures,
    SegmentParams,
    Segments,
    Sound,
    SoundFormat,
    SoundParams,
    SpanParams,
    Spans,
    SparseVector,
    StringRow,
    TableRow,
    Timestamps,
    TokenLabelParams,
    Transcript,
    TranscriptChunk,
    TranscriptParams,
    VectorParams,
    Writing,
    WritingParams,
)
from textmill_shard.tasks.task_facts import TaskFacts

_NO_IDS: IdArray = np.zeros(0, dtype=np.int64)
_CODES = {
    FailureCode.NOT_FINITE: pb.ROW_FAILURE_CODE_NOT_FINITE,
    FailureCode.NO_MEMORY: pb.ROW_FAILURE_CODE_NO_MEMORY,
    FailureCode.INTERNAL: pb.ROW_FAILURE_CODE_INTERNAL,
    FailureCode.BAD_MEDIA: pb.ROW_FAILURE_CODE_BAD_MEDIA,
    FailureCode.BAD_TEXT: pb.ROW_FAILURE_CODE_BAD_TEXT,
}
_WRITING_COUNTS = ("max_new_tokens", "max_length", "num_beams")
_WRITING_REALS = ("temperature", "top_p", "repetition_penalty", "max_time_s")
_WRITING_FIELDS = (
    *(*_WRITING_COUNTS, *_WRITING_REALS, "min_length", "min_new_tokens", "do_sample", "top_k", "length_penalty"),
    "no_repeat_ngram_size",
)
_SOUND_FORMATS = {
    pb.SOUND_FORMAT_FLAC: SoundFormat.FLAC,
    pb.SOUND_FORMAT_WAV: SoundFormat.WAV,
    pb.SOUND_FORMAT_OGG: SoundFormat.OGG,
    pb.SOUND_FORMAT_MP3: SoundFormat.MP3,
    pb.SOUND_FORMAT_OPUS: SoundFormat.OPUS,
    pb.SOUND_FORMAT_PCM: SoundFormat.PCM,
}
_TIMESTAMPS = {
    pb.TIMESTAMPS_NONE: Timestamps.NONE,
    pb.TIMESTAMPS_SEGMENTS: Timestamps.SEGMENTS,
    pb.TIMESTAMPS_WORDS: Timestamps.WORDS,
    pb.TIMESTAMPS_CHARACTERS: Timestamps.CHARACTERS,
}


def task_facts_to_wire(facts: TaskFacts) -> pb.TaskFacts:
    return pb.TaskFacts(
        protocol_version=PROTOCOL_VERSION,
        model_id=facts.model_id,
        model_sha=facts.model_sha,
        model_type=facts.model_type,
        dtype=facts.dtype,
        device=facts.device,
        task=facts.task,
        heads=[head.value for head in facts.heads],
        labels=facts.labels,
        problem_type=facts.problem_type,
        max_row_tokens=facts.max_row_tokens,
        max_batch_tokens=facts.max_batch_tokens,
        counts_padding=facts.counts_padding,
        vector_width=facts.vector_width,
        token_vector_width=facts.token_vector_width,
        is_normalized=facts.is_normalized,
        vocab_size=facts.vocab_size,
        num_token_types=facts.num_token_types,
        mask_token_id=facts.mask_token_id,
        tokenizer_digest=facts.tokenizer_digest,
        weight_bytes=facts.weight_bytes,
        media=facts.media,
        max_batch_files=facts.max_batch_files,
        languages=facts.languages,
        subtasks=facts.subtasks,
        num_speakers=facts.num_speakers,
    )


def batch_from_wire(message: pb.RowBatch) -> RowBatch:
    """Read a batch. Raises BatchRejected where the lengths of the packed arrays do not fit together."""
    head_name = message.WhichOneof("head")
    if head_name is None:
        raise BatchRejected("head", "a batch asks for a head")
    head = HeadName(head_name)
    match message.WhichOneof("rows"):
        case "text":
            rows: Sequence[Row | MediaRow | TableRow | StringRow] = _text_rows(head, message)
        case "media":
            rows = _media_rows(head, message)
        case "tables":
            rows = _table_rows(message.tables)
        case "strings":
            rows = _string_rows(head, message)
        case _:
            raise BatchRejected("rows", "a batch holds texts, files, tables or strings")
    return RowBatch(number=message.number, head=head, rows=rows)


def _media_rows(head: HeadName, message: pb.RowBatch) -> list[MediaRow]:
    files = message.media.files
    if not files:
        raise BatchRejected("media.files", "a batch has at least one row")
    if len(message.media.texts) not in (0, len(files)):
        raise BatchRejected("media.texts", f"{len(files)} elements are wanted, {len(message.media.texts)} came")
    texts = [tuple(each.texts) for each in message.media.texts] or [()] * len(files)
    params = _media_params(head, message, len(files))
    return [MediaRow(*row) for row in zip(files, params, texts, strict=True)]


def _table_rows(message: pb.TableRows) -> list[TableRow]:
    if not message.tables:
        raise BatchRejected("tables.tables", "a batch has at least one row")
    for table in message.tables:
        if not table.columns or not table.cells or len(table.cells) % len(table.columns):
            raise BatchRejected("tables.cells", f"{len(table.cells)} came for {len(table.columns)} columns")
        if not table.questions:
            raise BatchRejected("tables.questions", "a table has at least one question")
    return [
        TableRow(tuple(table.columns), tuple(table.cells), tuple(table.questions), table.is_sequential)
        for table in message.tables
    ]


def _media_params(head: HeadName, message: pb.RowBatch, num_rows: int) -> Sequence[Params]:
    if head is HeadName.BOXES:
        return [BoxParams(float(value)) for value in _f32("boxes.thresholds", message.boxes.thresholds, size=num_rows)]
    if head is HeadName.SEGMENTS:
        return _segment_params(message.segments, num_rows)
    if head is HeadName.WRITINGS:
        return _writing_params(message.writings, num_rows)
    if head is HeadName.DOCUMENTS:
        return _document_params(message, num_rows)
    if head is not HeadName.TRANSCRIPTS:
        return [None] * num_rows
    asked = message.transcripts
    for name in ("timestamps", "languages", "prompts"):
        if len(getattr(asked, name)) not in (0, num_rows):
            raise BatchRejected(f"transcripts.{name}", f"{num_rows} elements are wanted")
    kinds = list(asked.timestamps) or [pb.TIMESTAMPS_NONE] * num_rows
    if any(kind not in _TIMESTAMPS for kind in kinds):
        raise BatchRejected("transcripts.timestamps", f"{kinds} are not all known")
    translates = _u8("transcripts.translates", asked.translates or b"\0" * num_rows, size=num_rows)
    longest = _per_row("transcripts.max_new_tokens", asked.max_new_tokens, num_rows)
    none = b"\0\0\0\0" * num_rows
    beams = _per_row("transcripts.num_beams", asked.num_beams, num_rows)
    chunks = _f32("transcripts.chunk_lengths", asked.chunk_lengths or none, size=num_rows)
    strides = _f32("transcripts.stride_lengths", asked.stride_lengths or none, size=num_rows)
    measured = _u8("transcripts.measured", asked.measured or b"\0" * num_rows, size=num_rows)
    return [
        TranscriptParams(
            timestamps=_TIMESTAMPS[kinds[row]],
            language=asked.languages[row] if asked.languages else "",
            translates=bool(translates[row]),
            max_new_tokens=int(longest[row]),
            num_beams=int(beams[row]),
            chunk_s=float(chunks[row]),
            stride_s=float(strides[row]),
            prompt=asked.prompts[row] if asked.prompts else "",
            is_measured=bool(measured[row]),
        )
        for row in range(num_rows)
    ]


def _segment_params(asked: pb.SegmentHead, num_rows: int) -> list[Params]:
    if len(asked.subtasks) not in (0, num_rows):
        raise BatchRejected("segments.subtasks", f"{num_rows} elements are wanted")
    thresholds, masks, overlaps = (
        _f32(f"segments.{name}", getattr(asked, name), size=num_rows).tolist()
        for name in ("thresholds", "mask_thresholds", "overlap_thresholds")
    )
    subtasks = list(asked.subtasks) or [""] * num_rows
    return [SegmentParams(thresholds[row], masks[row], overlaps[row], subtasks[row]) for row in range(num_rows)]


def _writing_params(asked: pb.WritingHead, num_rows: int) -> list[Params]:
    if len(asked.wishes) != num_rows:
        raise BatchRejected("writings.wishes", f"{num_rows} elements are wanted, {len(asked.wishes)} came")
    return [_writing_wish(wish) for wish in asked.wishes]


def _writing_wish(wish: pb.WritingWish) -> WritingParams:
    given = {name: getattr(wish, name) for name in _WRITING_FIELDS if wish.HasField(name)}  # type: ignore[arg-type]
    for name in _WRITING_COUNTS:
        if given.get(name) == 0:
            raise BatchRejected(f"writings.{name}", "a number from 1 on is wanted")
    for name in _WRITING_REALS:
        if name in given and not 0.0 < given[name] < np.inf:
            raise BatchRejected(f"writings.{name}", f"a number above 0 is wanted, {given[name]} came")
    return WritingParams(**given, with_probability=wish.with_probability)


def _document_params(message: pb.RowBatch, num_rows: int) -> list[Params]:
    asked = message.documents
    # The first text of a row is the question.
    counts = np.array([len(each.texts) - 1 for each in message.media.texts], dtype=np.int64)
    if len(counts) != num_rows or (counts < 1).any():
        raise BatchRejected("media.texts", "each row has a question and one word at least")
    boxes = _u32("documents.boxes", asked.boxes, size=4 * int(counts.sum())).reshape(-1, 4)
    if int(boxes.max()) > 1000 or (boxes[:, :2] > boxes[:, 2:]).any():
        raise BatchRejected("documents.boxes", "left, top, right and bottom up to 1000 are wanted, in their order")
    windows, strides, longest, most = (
        _u32(f"documents.{name}", getattr(asked, name), size=num_rows).tolist()
        for name in ("max_window_tokens", "strides", "max_span_tokens", "max_spans")
    )
    if not all((*windows, *longest, *most)):
        raise BatchRejected("documents.max_window_tokens", "windows, spans and their tokens are numbers from 1 on")
    parts = np.split(boxes, np.cumsum(counts)[:-1])
    return [DocumentParams(parts[row], windows[row], strides[row], longest[row], most[row]) for row in range(num_rows)]


def _string_rows(head: HeadName, message: pb.RowBatch) -> list[StringRow]:
    texts = message.strings.texts
    if not texts:
        raise BatchRejected("strings.texts", "a batch has at least one row")
    if head is not HeadName.SOUNDS:
        return [StringRow(text) for text in texts]
    if len(message.sounds.wishes) != len(texts):
        raise BatchRejected("sounds.wishes", f"{len(texts)} elements are wanted")
    wishes = (_sound_params(index, wish) for index, wish in enumerate(message.sounds.wishes))
    return [StringRow(text, params) for text, params in zip(texts, wishes, strict=True)]


def _sound_params(index: int, wish: pb.SoundWish) -> SoundParams:
    if wish.format not in _SOUND_FORMATS:
        raise BatchRejected("sounds.wishes.format", f"row {index} has {wish.format}, which is not known")
    numbers = {
        name: float(getattr(wish, name)) if wish.HasField(name) else None
        for name in ("speaking_rate", "noise_scale", "noise_scale_duration")
    }
    positive = (wish.speed, *([] if numbers["speaking_rate"] is None else [numbers["speaking_rate"]]))
    known = [number for number in numbers.values() if number is not None]
    if not all(number > 0 for number in positive) or not all(0 <= number < np.inf for number in (wish.speed, *known)):
        raise BatchRejected("sounds.wishes", f"row {index} has a number that is out of its range")
    return SoundParams(_SOUND_FORMATS[wish.format], wish.seed, wish.speaker, speed=float(wish.speed), **numbers)


def _text_rows(head: HeadName, message: pb.RowBatch) -> list[Row]:
    text = message.text
    lengths = _u32("text.lengths", text.lengths)
    num_rows = len(lengths)
    if not num_rows:
        raise BatchRejected("text.lengths", "a batch has at least one row")
    all_ids = _u32("text.token_ids", text.token_ids, size=int(lengths.sum()))
    ids = _split(all_ids, lengths)
    types: Sequence[IdArray | None] = [None] * num_rows
    if text.token_types:
        types = _split(_u8("text.token_types", text.token_types, size=len(all_ids)).astype(np.int64), lengths)
    params = _params(head, getattr(message, head.value), lengths)
    return [
        Row(token_ids=row_ids, token_types=row_types, params=row_params)
        for row_ids, row_types, row_params in zip(ids, types, params, strict=True)
    ]


def _params(head: HeadName, message: Any, lengths: IdArray) -> Sequence[Params]:
    num_rows, num_tokens = len(lengths), int(lengths.sum())
    match head:
        case HeadName.VECTORS:
            dimensions = _per_row("vectors.dimensions", message.dimensions, num_rows)
            prompts = _per_row("vectors.prompt_lengths", message.prompt_lengths, num_rows)
            normalized: Sequence[bool | None] = [None] * num_rows
            if message.normalized:
                normalized = [bool(value) for value in _u8("vectors.normalized", message.normalized, size=num_rows)]
            return [
                VectorParams(dimensions=int(kept), is_normalized=is_normalized, prompt_length=int(prompt))
                for kept, is_normalized, prompt in zip(dimensions, normalized, prompts, strict=True)
            ]
        case HeadName.TOKEN_LABELS:
            wanted = _u8("token_labels.is_wanted", message.is_wanted, size=num_tokens) != 0
            return [TokenLabelParams(part) for part in np.split(wanted, np.cumsum(lengths)[:-1])]
        case HeadName.MASKS:
            counts = _u32("masks.mask_counts", message.mask_counts, size=num_rows)
            positions = _split(_u32("masks.positions", message.positions, size=int(counts.sum())), counts)
            top_k = _u32("masks.top_k", message.top_k, size=num_rows)
            target_counts = _per_row("masks.target_counts", message.target_counts, num_rows)
            targets = _split(_u32("masks.target_ids", message.target_ids, size=int(target_counts.sum())), target_counts)
            return [
                MaskParams(positions=places, top_k=int(k), target_ids=ids)
                for places, k, ids in zip(positions, top_k, targets, strict=True)
            ]
        case HeadName.SPANS:
            roles = np.split(_u8("spans.roles", message.roles, size=num_tokens), np.cumsum(lengths)[:-1])
            longest = _u32("spans.max_span_tokens", message.max_span_tokens, size=num_rows)
            most = _u32("spans.max_spans", message.max_spans, size=num_rows)
            return [
                SpanParams(roles_n=part, max_span_tokens=int(tokens), max_spans=int(spans))
                for part, tokens, spans in zip(roles, longest, most, strict=True)
            ]
    return [None] * num_rows


def answers_to_wire(answers: RowAnswers) -> pb.RowAnswers:
    failures = [
        pb.RowFailure(row=index, code=_CODES[answer.code], message=answer.message)
        for index, answer in enumerate(answers.answers)
        if isinstance(answer, RowFailure)
    ]
    whole = [answer for answer in answers.answers if not isinstance(answer, RowFailure)]
    return pb.RowAnswers(
        number=answers.number,
        failures=failures,
        audio_seconds=np.array(answers.audio_seconds, dtype="<f4").tobytes(),
        num_tokens=np.array(answers.num_tokens, dtype="<u4").tobytes(),
        wait_ns=answers.wait_ns,
        compute_ns=answers.compute_ns,
        **{answers.head.value: _answer_to_wire(answers.head, whole)},
    )


def _answer_to_wire(head: HeadName, answers: Sequence[Answer]) -> Any:
    match head:
        case HeadName.VECTORS:
            vectors = [_floats(answer) for answer in answers]
            return pb.VectorAnswers(widths=_pack_counts(vectors), values=_pack_floats(vectors))
        case HeadName.TOKEN_VECTORS:
            vectors = [_floats(answer) for answer in answers]
            width = vectors[0].shape[1] if vectors else 0
            return pb.TokenVectorAnswers(width=width, values=_pack_floats(vectors))
        case HeadName.SPARSE_VECTORS:
            sparse = [answer for answer in answers if isinstance(answer, SparseVector)]
            return pb.SparseVectorAnswers(
                counts=_pack_counts([vector.ids for vector in sparse]),
                ids=_pack_ids([vector.ids for vector in sparse]),
                weights=_pack_floats([vector.weights for vector in sparse]),
            )
        case HeadName.LABELS:
            logits = [_floats(answer) for answer in answers]
            return pb.LabelAnswers(num_labels=len(logits[0]) if logits else 0, logits=_pack_floats(logits))
        case HeadName.TOKEN_LABELS:
            parts = [_floats(answer) for answer in answers]
            num_labels = parts[0].shape[1] if parts else 0
            return pb.TokenLabelAnswers(num_labels=num_labels, probabilities=_pack_floats(parts))
        case HeadName.MASKS:
            fillings: list[Filling] = [filling for answer in answers if isinstance(answer, tuple) for filling in answer]
            return pb.MaskAnswers(
                counts=_pack_counts([filling.ids for filling in fillings]),
                ids=_pack_ids([filling.ids for filling in fillings]),
                probabilities=_pack_floats([filling.probabilities for filling in fillings]),
            )
        case HeadName.SPANS:
            spans = [answer for answer in answers if isinstance(answer, Spans)]
            return pb.SpanAnswers(
                counts=_pack_counts([found.starts for found in spans]),
                starts=_pack_ids([found.starts for found in spans]),
                ends=_pack_ids([found.ends for found in spans]),
                scores=_pack_floats([found.scores for found in spans]),
                null_scores=np.array([found.null_score for found in spans], dtype="<f4").tobytes(),
            )
        case HeadName.BOXES:
            boxes = [answer for answer in answers if isinstance(answer, Boxes)]
            return pb.BoxAnswers(
                counts=_pack_counts([found.label_ids for found in boxes]),
                label_ids=_pack_ids([found.label_ids for found in boxes]),
                scores=_pack_floats([found.scores for found in boxes]),
                boxes=_pack_ids([found.corners.reshape(-1) for found in boxes]),
            )
        case HeadName.SEGMENTS:
            segments = [answer for answer in answers if isinstance(answer, Segments)]
            return pb.SegmentAnswers(
                counts=_pack_counts([found.label_ids for found in segments]),
                label_ids=_pack_ids([np.array(found.label_ids, dtype=np.int64) for found in segments]),
                scores=np.array([score for found in segments for score in found.scores or ()], dtype="<f4").tobytes(),
                has_scores=bytes(found.scores is not None for found in segments),
                masks=[mask for found in segments for mask in found.masks],
            )
        case HeadName.PAIR_SCORES:
            scores = [_floats(answer) for answer in answers]
            return pb.PairScoreAnswers(counts=_pack_counts(scores), scores=_pack_floats(scores))
        case HeadName.DEPTHS:
            depths = [answer for answer in answers if isinstance(answer, Depth)]
            return pb.DepthAnswers(
                heights=np.array([each.depths_HW.shape[0] for each in depths], dtype="<u4").tobytes(),
                widths=np.array([each.depths_HW.shape[1] for each in depths], dtype="<u4").tobytes(),
                depths=_pack_floats([each.depths_HW for each in depths]),
                pictures=[each.picture for each in depths],
            )
        case HeadName.WRITINGS:
            texts = [_writing_to_wire(answer) for answer in answers if isinstance(answer, Writing)]
            return pb.WritingAnswers(writings=texts)
        case HeadName.DOCUMENTS:
            pages = [answer for answer in answers if isinstance(answer, PageSpans)]
            return pb.DocumentAnswers(
                counts=_pack_counts([page.starts for page in pages]),
                starts=_pack_ids([page.starts for page in pages]),
                ends=_pack_ids([page.ends for page in pages]),
                scores=_pack_floats([page.scores for page in pages]),
                null_scores=np.array([page.null_score for page in pages], dtype="<f4").tobytes(),
            )
        case HeadName.CELLS:
            choices = [choice for answer in answers if isinstance(answer, CellAnswer) for choice in answer.choices]
            cells = [np.array(choice.cells, dtype=np.int64).reshape(-1, 2) for choice in choices]
            return pb.CellAnswers(
                counts=_pack_counts(cells),
                rows=_pack_ids([places[:, 0] for places in cells]),
                columns=_pack_ids([places[:, 1] for places in cells]),
                label_ids=_pack_ids([np.array([0 if one.label is None else 1 + one.label for one in choices])]),
                is_plain=bytes(one.is_plain for one in choices),
                num_kept=_pack_ids([np.array([one.num_kept for one in choices])]),
                is_cut=bytes(one.is_cut for one in choices),
            )
        case HeadName.SOUNDS:
            return pb.SoundAnswers(files=[answer.file for answer in answers if isinstance(answer, Sound)])
        case HeadName.TRANSCRIPTS:
            found = [_transcript_to_wire(answer) for answer in answers if isinstance(answer, Transcript)]
            return pb.TranscriptAnswers(transcripts=found)


def _writing_to_wire(found: Writing) -> pb.Writing:
    return pb.Writing(text=found.text, probability=found.probability, is_drawn=found.is_drawn)


def _transcript_to_wire(found: Transcript) -> pb.Transcript:
    return pb.Transcript(
        text=found.text,
        chunks=_chunks_to_wire(found.chunks),
        language=found.language,
        segments=_chunks_to_wire(found.segments),
    )


def _chunks_to_wire(chunks: Sequence[TranscriptChunk]) -> list[pb.TranscriptChunk]:
    return [
        pb.TranscriptChunk(
            text=chunk.text,
            start_s=chunk.start_s,
            end_s=chunk.end_s,
            measures=None if chunk.measures is None else _measures_to_wire(chunk.measures),
        )
        for chunk in chunks
    ]


def _measures_to_wire(found: SegmentMeasures) -> pb.SegmentMeasures:
    return pb.SegmentMeasures(
        seek=found.seek,
        token_ids=array("I", found.token_ids).tobytes(),
        avg_logprob=found.avg_logprob,
        compression_ratio=found.compression_ratio,
        no_speech_prob=found.no_speech_prob,
    )


def _floats(answer: Answer) -> FloatArray:
    assert isinstance(answer, np.ndarray)
    return answer


def _u32(field: str, data: bytes, *, size: int | None = None) -> IdArray:
    return _read(field, data, "<u4", size=size)


def _f32(field: str, data: bytes, *, size: int) -> FloatArray:
    if len(data) != 4 * size:
        raise BatchRejected(field, f"{size} elements of 4 bytes are wanted, {len(data)} bytes came")
    values = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(values).all() or (values < 0).any():
        raise BatchRejected(field, "numbers from 0 on are wanted")
    return values


def _u8(field: str, data: bytes, *, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    if len(data) != size:
        raise BatchRejected(field, f"{size} elements are wanted, {len(data)} came")
    return np.frombuffer(data, dtype=np.uint8)


def _read(field: str, data: bytes, kind: str, *, size: int | None) -> IdArray:
    if len(data) % 4:
        raise BatchRejected(field, f"{len(data)} bytes are no whole number of elements of 4 bytes")
    values = np.frombuffer(data, dtype=kind).astype(np.int64)
    if size is not None and len(values) != size:
        raise BatchRejected(field, f"{size} elements are wanted, {len(values)} came")
    return values


def _per_row(field: str, data: bytes, num_rows: int) -> IdArray:
    """Read one element per row, where an empty array stands for zeros."""
    return _u32(field, data, size=num_rows) if data else np.zeros(num_rows, dtype=np.int64)


def _split(values: IdArray, counts: IdArray) -> list[IdArray]:
    return np.split(values, np.cumsum(counts)[:-1])


def _pack_counts(arrays: Sequence[Any]) -> bytes:
    return np.array([len(array) for array in arrays], dtype="<u4").tobytes()


def _pack_ids(arrays: Sequence[IdArray]) -> bytes:
    return np.concatenate([_NO_IDS, *arrays]).astype("<u4").tobytes()


def _pack_floats(arrays: Sequence[FloatArray]) -> bytes:
    return b"".join(array.astype("<f4").tobytes() for array in arrays)
