"""A shard of rows without a model behind the real gRPC contract. A script gives its numbers and its faults.

A test writes `with FakeRowShard(folder / "shard.sock", options) as shard: ...`.
"""

import base64
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

WIDTH = 3
WAIT_S = 10.0
# A PNG of one gray pixel.
MASK = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def plain_vector(ids: Sequence[int]) -> list[float]:
    """Return three numbers that tell texts apart: of length, first word and sum."""
    return [float(len(ids)), float(ids[1] % 7) if len(ids) > 1 else 0.0, float(sum(ids) % 11)]


def plain_logits(ids: Sequence[int], num_labels: int) -> list[float]:
    """Return a number for each label that depends on the ids."""
    return [float((sum(ids) * (label + 3)) % 13) / 4 for label in range(num_labels)]


@dataclass(frozen=True, slots=True)
class RowShardOptions:
    """The facts of the shard, and what it computes."""

    task: str = "feature-extraction"
    heads: tuple[str, ...] = ("vectors", "token_vectors")
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    max_row_tokens: int = 32
    max_batch_tokens: int = 256
    counts_padding: bool = True
    vocab_size: int = 200
    mask_token_id: int | None = None
    is_normalized: bool = False
    vector: Callable[[Sequence[int]], list[float]] = plain_vector
    logits: Callable[[Sequence[int], int], list[float]] = plain_logits
    tokenizer_digest: str = ""
    media: str = ""  # "image" or "audio" where rows are files, "table" or "text" where they are tables or strings
    max_batch_files: int = 8
    languages: tuple[str, ...] = ()
    subtasks: tuple[str, ...] = ()
    num_speakers: int = 0


@dataclass(slots=True)
class SeenBatch:
    """One batch as it came: the head, and the token ids and types of each row, or its file."""

    head: str
    rows: list[Any]
    types: bytes
    message: Any = field(repr=False, default=None)


class FakeRowShard(shard_pb2_grpc.ShardServicer):
    """A context manager that serves on a Unix socket. Public methods cause faults, and may be called at any time."""

    def __init__(self, uds_path: Path, options: RowShardOptions | None = None) -> None:
        self._uds_path = uds_path
        self._options = options or RowShardOptions()
        self._may_answer = threading.Event()
        self._may_answer.set()
        self._num_losses = 0
        self._is_poisoned: Callable[[Sequence[int]], bool] = lambda ids: False
        self._is_refused: Callable[[Any], bool] = lambda row: False
        self._is_deadly: Callable[[Any], bool] = lambda row: False
        self._loading: tuple[str, float] | None = None
        self._arrived = threading.Condition()
        self.batches: list[SeenBatch] = []

    def __enter__(self) -> Self:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(8, "fake-row-shard"), options=options)
        shard_pb2_grpc.add_ShardServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._uds_path}")
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._may_answer.set()
        self._server.stop(grace=0.2).wait(5)
        self._uds_path.unlink(missing_ok=True)

    # ---- Faults and controls.

    def hold(self) -> None:
        """Answer no batch until `release`. Batches come in, and Health is answered."""
        self._may_answer.clear()

    def release(self) -> None:
        self._may_answer.set()

    def lose_batches(self, count: int) -> None:
        """Lose the next so many batches with the shard, which is there again at once. Also while batches are held."""
        self._num_losses = count

    def poison(self, condition: Callable[[Sequence[int]], bool]) -> None:
        """Let each row for which the condition holds have a result that is not finite."""
        self._is_poisoned = condition

    def refuse(self, condition: Callable[[Any], bool]) -> None:
        """Refuse each batch that has a row (token ids, file, table or string) for which the condition holds."""
        self._is_refused = condition

    def die_of(self, condition: Callable[[Any], bool]) -> None:
        """Lose the shard, which is there again at once, at each batch that has a row for which the condition holds."""
        self._is_deadly = condition

    def load(self, phase: str | None, progress: float = 0.0) -> None:
        """Report a phase of loading from now on, or with None readiness."""
        self._loading = None if phase is None else (phase, progress)

    def wait_for_batches(self, count: int) -> None:
        """Wait until so many batches have come."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.batches) >= count, WAIT_S), len(self.batches)

    # ---- Calls of the router.

    def Health(self, request: Any, context: Any) -> shard_pb2.HealthReport:
        if self._loading is not None:
            phase, progress = self._loading
            return shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_LOADING, phase=phase, progress=progress)
        return shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_READY)

    def TaskInfo(self, request: Any, context: Any) -> shard_pb2.TaskFacts:
        one = self._options
        facts = shard_pb2.TaskFacts(
            protocol_version=PROTOCOL_VERSION,
            model_id="fake/model",
            model_type="bert",
            dtype="float32",
            device="cpu",
            task=one.task,
            heads=one.heads,
            labels=one.labels,
            problem_type=one.problem_type,
            max_row_tokens=one.max_row_tokens,
            max_batch_tokens=one.max_batch_tokens,
            counts_padding=one.counts_padding,
            vector_width=WIDTH,
            token_vector_width=WIDTH,
            is_normalized=one.is_normalized,
            vocab_size=one.vocab_size,
            num_token_types=2,
            tokenizer_digest=one.tokenizer_digest,
            media=one.media,
            max_batch_files=one.max_batch_files if one.media else 0,
            languages=one.languages,
            subtasks=one.subtasks,
            num_speakers=one.num_speakers,
        )
        if one.mask_token_id is not None:
            facts.mask_token_id = one.mask_token_id
        return facts

    def RunRows(self, request: shard_pb2.RowBatch, context: Any) -> shard_pb2.RowAnswers:
        lengths = _read("I", request.text.lengths)
        ids = _read("I", request.text.token_ids)
        rows: list[Any] = [*request.media.files, *request.tables.tables, *request.strings.texts]
        start = 0
        for length in lengths:
            rows.append(list(ids[start : start + length]))
            start += length
        head = request.WhichOneof("head")
        assert head is not None
        with self._arrived:
            self.batches.append(SeenBatch(head, rows, request.text.token_types, request))
            self._arrived.notify_all()
        if self._num_losses:
            self._num_losses -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "scripted loss")
        self._may_answer.wait()
        if any(self._is_deadly(row) for row in rows):
            context.abort(grpc.StatusCode.UNAVAILABLE, "scripted death")
        if any(self._is_refused(row) for row in rows):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "scripted refusal")
        answers = shard_pb2.RowAnswers(number=request.number, wait_ns=1000, compute_ns=2000)
        good = [index for index, row in enumerate(rows) if not self._is_poisoned(row)]
        if request.WhichOneof("rows") in ("media", "strings"):
            good = self._readable(answers, request, rows, good)
        for index in sorted(set(range(len(rows))) - set(good) - {failure.row for failure in answers.failures}):
            answers.failures.add(row=index, code=shard_pb2.ROW_FAILURE_CODE_NOT_FINITE, message="a score is not finite")
        getattr(self, f"_{head}")(answers, request, rows, good)
        return answers

    def _readable(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> list[int]:
        """Refuse files and texts that begin with BAD. Other audio has a second for each byte, or character to speak."""
        texts = [each.texts for each in request.media.texts] if request.media.texts else [[]] * len(rows)
        bad = [index for index in good if rows[index][:3] in (b"BAD", "BAD")]
        for index in bad:
            answers.failures.add(row=index, code=shard_pb2.ROW_FAILURE_CODE_BAD_MEDIA, message="the file is bad")
        for index in (index for index in good if any(text.startswith("BAD") for text in texts[index])):
            answers.failures.add(row=index, code=shard_pb2.ROW_FAILURE_CODE_BAD_TEXT, message="the text is bad")
            bad.append(index)
        if self._options.media in ("audio", "text"):
            seconds = array("f", [0.0 if index in bad else len(row) for index, row in enumerate(rows)])
            answers.audio_seconds = seconds.tobytes()
        if self._options.media == "text":
            answers.num_tokens = array("I", [2 * len(row) + 1 for row in rows]).tobytes()
        return [index for index in good if index not in bad]

    def _boxes(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Give each image an object for each of the scores 0.25, 0.5 and 0.75 above its threshold, in that order.

        Where rows have texts, the best object comes first, and the labels are those of the texts in turn.
        """
        thresholds = _read("f", request.boxes.thresholds)
        counts, ids, scores, corners = array("I"), array("I"), array("f"), array("I")
        for index in good:
            found = [(label, score) for label, score in enumerate((0.25, 0.5, 0.75)) if score > thresholds[index]]
            counts.append(len(found))
            num_texts = len(request.media.texts[index].texts) if request.media.texts else 0
            for label, score in reversed(found) if num_texts else found:
                ids.append(label % num_texts if num_texts else label)
                scores.append(score)
                corners.extend((label, 10 + label, 20 + label, len(rows[index])))
        arrays = {"counts": counts, "label_ids": ids, "scores": scores, "boxes": corners}
        answers.boxes.CopyFrom(shard_pb2.BoxAnswers(**{name: each.tobytes() for name, each in arrays.items()}))

    def _pair_scores(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Give each text about an image its length divided by 64."""
        texts = [request.media.texts[index].texts for index in good]
        answers.pair_scores.CopyFrom(
            shard_pb2.PairScoreAnswers(
                counts=array("I", map(len, texts)).tobytes(),
                scores=array("f", [len(text) / 64 for of_row in texts for text in of_row]).tobytes(),
            )
        )

    def _depths(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Give each image two rows of three pixels, whose depths count from the number of bytes in quarters."""
        depths = array("f", [len(rows[index]) + place / 4 for index in good for place in range(6)])
        answers.depths.CopyFrom(
            shard_pb2.DepthAnswers(
                heights=array("I", [2] * len(good)).tobytes(),
                widths=array("I", [3] * len(good)).tobytes(),
                depths=depths.tobytes(),
                pictures=[MASK] * len(good),
            )
        )

    def _cells(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Choose the first and the last cell of each table, and for question n the label n; the label 0 is plain.

        A table of more than three rows loses the others.
        """
        found = answers.cells
        arrays = {name: array("I") for name in ("counts", "rows", "columns", "label_ids", "num_kept")}
        for index in good:
            table = rows[index]
            width = len(table.columns)
            num_kept = min(3, len(table.cells) // width)
            for number, _ in enumerate(table.questions):
                label = number % len(self._options.labels) + 1 if self._options.labels else 0
                arrays["counts"].append(2)
                arrays["rows"].extend((0, num_kept - 1))
                arrays["columns"].extend((0, width - 1))
                arrays["label_ids"].append(label)
                arrays["num_kept"].append(num_kept)
                found.is_plain += bytes([label < 2])
        answers.num_tokens = array("I", [len(row.questions) * (len(row.cells) + 2) for row in rows]).tobytes()
        found.MergeFrom(shard_pb2.CellAnswers(**{name: each.tobytes() for name, each in arrays.items()}))

    def _segments(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Give each image two segments, whose scores are two of its thresholds; semantic ones have none.

        The masks are a PNG of one pixel.
        """
        asked = request.segments
        thresholds, overlaps = _read("f", asked.thresholds), _read("f", asked.overlap_thresholds)
        scores = array("f")
        for index in good:
            if asked.subtasks[index] != "semantic":
                scores.extend((thresholds[index], overlaps[index]))
        found = shard_pb2.SegmentAnswers(
            counts=array("I", [2] * len(good)).tobytes(),
            label_ids=array("I", [0, 2] * len(good)).tobytes(),
            scores=scores.tobytes(),
            has_scores=bytes(asked.subtasks[index] != "semantic" for index in good),
            masks=[MASK, MASK] * len(good),
        )
        answers.segments.CopyFrom(found)

    def _transcripts(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Say what was asked, and give two parts, of which the second has no end, where times were asked for.

        A model with languages hears German. It gives one segment beside words, and else the parts as segments, where
        their measures are asked for.
        """
        asked = request.transcripts
        chunks, strides = _read("f", asked.chunk_lengths), _read("f", asked.stride_lengths)
        tokens = _read("I", asked.max_new_tokens)
        for index in good:
            parts = []
            if asked.timestamps[index]:
                parts = [
                    shard_pb2.TranscriptChunk(text="one", start_s=0.0, end_s=0.32),
                    shard_pb2.TranscriptChunk(text="two", start_s=0.32),
                ]
            said = f"{asked.timestamps[index]} {asked.languages[index]!r} {asked.translates[index]} {tokens[index]}"
            said += f" {chunks[index]:.3f} {strides[index]:.3f}"
            if asked.prompts and asked.prompts[index]:
                said += f" after {asked.prompts[index]!r}"
            has_words = asked.timestamps[index] == shard_pb2.TIMESTAMPS_WORDS
            segments = [shard_pb2.TranscriptChunk(text="one two", start_s=0.0)] if has_words else parts
            answers.transcripts.transcripts.append(
                shard_pb2.Transcript(
                    text=said,
                    chunks=parts,
                    language="german" if self._options.languages else "",
                    segments=[_measured(segment) for segment in segments]
                    if asked.measured and asked.measured[index]
                    else [],
                )
            )
        answers.transcripts.SetInParent()

    def _writings(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Say what was asked, and the question if there is one; a probability of 0.5 where asked for."""
        for index in good:
            wish = request.writings.wishes[index]
            asked = {field.name: value for field, value in wish.ListFields() if field.name != "with_probability"}
            question = request.media.texts[index].texts[0] if request.media.texts else ""
            text = " ".join([question, *(f"{name}={value:g}" for name, value in sorted(asked.items()))]).strip()
            answers.writings.writings.append(
                shard_pb2.Writing(
                    text=text, probability=0.5 if wish.with_probability else None, is_drawn=wish.do_sample
                )
            )
        answers.writings.SetInParent()

    def _documents(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Give each page two spans: its last two words with 0.5, and its first word with 0.25. No answer has 0.375."""
        starts, ends = array("I"), array("I")
        for index in good:
            num_words = len(request.media.texts[index].texts) - 1
            starts.extend((max(0, num_words - 2), 0))
            ends.extend((num_words - 1, 0))
        found = shard_pb2.DocumentAnswers(
            counts=array("I", [2] * len(good)).tobytes(),
            starts=starts.tobytes(),
            ends=ends.tobytes(),
            scores=array("f", [0.5, 0.25] * len(good)).tobytes(),
            null_scores=array("f", [0.375] * len(good)).tobytes(),
        )
        answers.documents.CopyFrom(found)

    def _sounds(self, answers: Any, request: Any, rows: list[Any], good: list[int]) -> None:
        """Answer with a file that says what was asked."""
        for index in good:
            wish = request.sounds.wishes[index]
            numbers = [wish.speed]
            for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
                numbers.append(getattr(wish, name) if wish.HasField(name) else -1)
            said = " ".join(f"{number:g}" for number in numbers)
            answers.sounds.files.append(f"{wish.format} {wish.seed} {wish.speaker} {said} {rows[index]}".encode())
        answers.sounds.SetInParent()

    def _vectors(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        wanted = _read("I", request.vectors.dimensions) or array("I", [0] * len(rows))
        normalized = request.vectors.normalized
        widths, values = array("I"), array("f")
        for index in good:
            vector = self._options.vector(rows[index])[: wanted[index] or None]
            if normalized[index]:
                length = sum(value * value for value in vector) ** 0.5 or 1.0
                vector = [value / length for value in vector]
            widths.append(len(vector))
            values.extend(vector)
        answers.vectors.CopyFrom(shard_pb2.VectorAnswers(widths=widths.tobytes(), values=values.tobytes()))

    def _token_vectors(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        values = array("f", [float(token) for index in good for token in rows[index] for _ in range(WIDTH)])
        answers.token_vectors.CopyFrom(shard_pb2.TokenVectorAnswers(width=WIDTH, values=values.tobytes()))

    def _sparse_vectors(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        counts, ids, weights = array("I"), array("I"), array("f")
        for index in good:
            found = sorted(set(rows[index]))
            counts.append(len(found))
            ids.extend(found)
            weights.extend(token / 2 for token in found)
        answers.sparse_vectors.CopyFrom(
            shard_pb2.SparseVectorAnswers(counts=counts.tobytes(), ids=ids.tobytes(), weights=weights.tobytes())
        )

    def _labels(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        count = len(self._options.labels)
        logits = array("f", [value for index in good for value in self._options.logits(rows[index], count)])
        answers.labels.CopyFrom(shard_pb2.LabelAnswers(num_labels=count, logits=logits.tobytes()))

    def _token_labels(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        """Give the label `id % number of labels` the probability 0.9, and share the rest equally."""
        count, wanted, start = len(self._options.labels), request.token_labels.is_wanted, 0
        probabilities = array("f")
        for index, row in enumerate(rows):
            if index in good:
                for place, token in enumerate(row):
                    if wanted[start + place]:
                        rest = 0.1 / (count - 1)
                        probabilities.extend(0.9 if label == token % count else rest for label in range(count))
            start += len(row)
        answers.token_labels.CopyFrom(
            shard_pb2.TokenLabelAnswers(num_labels=count, probabilities=probabilities.tobytes())
        )

    def _masks(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        """Give the ids 20, 21 ... or the targets, with the probabilities 1/2, 1/4 ..."""
        masks, tops = _read("I", request.masks.mask_counts), _read("I", request.masks.top_k)
        target_counts, targets = _read("I", request.masks.target_counts), _read("I", request.masks.target_ids)
        counts, ids, probabilities, start = array("I"), array("I"), array("f"), 0
        for index in range(len(rows)):
            own = targets[start : start + target_counts[index]]
            start += target_counts[index]
            if index not in good:
                continue
            for _ in range(masks[index]):
                found = list(own or range(20, 20 + tops[index]))[: tops[index]]
                counts.append(len(found))
                ids.extend(found)
                probabilities.extend(0.5 ** (place + 1) for place in range(len(found)))
        answers.masks.CopyFrom(
            shard_pb2.MaskAnswers(counts=counts.tobytes(), ids=ids.tobytes(), probabilities=probabilities.tobytes())
        )

    def _spans(self, answers: Any, request: Any, rows: list[list[int]], good: list[int]) -> None:
        """Give the first and the last token of the context as spans, with the scores 0.5 and 0.25."""
        counts, starts, ends, scores, nulls, begin = array("I"), array("I"), array("I"), array("f"), array("f"), 0
        for index, row in enumerate(rows):
            roles = request.spans.roles[begin : begin + len(row)]
            begin += len(row)
            if index not in good:
                continue
            context = [place for place, role in enumerate(roles) if role == 2]
            counts.append(2)
            for place, score in ((context[0], 0.5), (context[-1], 0.25)):
                starts.append(place)
                ends.append(place)
                scores.append(score)
            nulls.append(0.125)
        answers.spans.CopyFrom(
            shard_pb2.SpanAnswers(
                counts=counts.tobytes(),
                starts=starts.tobytes(),
                ends=ends.tobytes(),
                scores=scores.tobytes(),
                null_scores=nulls.tobytes(),
            )
        )


def _measured(segment: shard_pb2.TranscriptChunk) -> shard_pb2.TranscriptChunk:
    measures = shard_pb2.SegmentMeasures(
        seek=7,
        token_ids=array("I", map(ord, segment.text)).tobytes(),
        avg_logprob=-0.5,
        compression_ratio=1.25,
        no_speech_prob=0.125,
    )
    return shard_pb2.TranscriptChunk(
        text=segment.text,
        start_s=segment.start_s,
        end_s=segment.end_s if segment.HasField("end_s") else None,
        measures=measures,
    )


def _read(code: str, data: bytes) -> "array[Any]":
    values: array[Any] = array(code)
    values.frombytes(data)
    return values
