"""The messages of rows, both ways, and batches that break a rule (rule 31)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2 as pb
from textmill_shard.server.row_wire import answers_to_wire, batch_from_wire, task_facts_to_wire
from textmill_shard.tasks.batch_check import BatchRejected, check_batch
from textmill_shard.tasks.rows import (
    Boxes,
    BoxParams,
    CellAnswer,
    CellChoice,
    Depth,
    DocumentParams,
    FailureCode,
    Filling,
    HeadName,
    MaskParams,
    MediaRow,
    PageSpans,
    RowAnswers,
    RowFailure,
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

FACTS = TaskFacts(
    model_id="org/m",
    model_sha="abc",
    model_type="bert",
    dtype="float32",
    device="cpu",
    task="fill-mask",
    heads=tuple(HeadName),
    labels=("no", "yes"),
    problem_type="regression",
    max_row_tokens=6,
    max_batch_tokens=8,
    counts_padding=True,
    vector_width=4,
    token_vector_width=5,
    is_normalized=True,
    vocab_size=50,
    num_token_types=2,
    mask_token_id=3,
    tokenizer_digest="ff",
    weight_bytes=2**40,
    media="image",
    max_batch_files=2,
    languages=("de", "en"),
    subtasks=("semantic",),
    num_speakers=2,
)
TEXT_FACTS = replace(FACTS, media="", max_batch_files=0)


def u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def f32(data: bytes) -> list[float]:
    return np.frombuffer(data, dtype="<f4").tolist()


def texts(*rows: tuple[int, ...], **more: bytes) -> pb.TextRows:
    ids = [token_id for row in rows for token_id in row]
    return pb.TextRows(token_ids=u32(*ids), lengths=u32(*(len(row) for row in rows)), **more)


TWO = ((5, 6, 7), (8,))


def test_every_field_of_the_facts_is_set() -> None:
    message = task_facts_to_wire(FACTS)
    assert len(message.ListFields()) == len(pb.TaskFacts.DESCRIPTOR.fields)
    assert message.protocol_version == PROTOCOL_VERSION
    assert list(message.heads) == [field.name for field in pb.RowBatch.DESCRIPTOR.oneofs_by_name["head"].fields]


def test_texts_are_read_row_by_row() -> None:
    batch = batch_from_wire(pb.RowBatch(number=7, text=texts(*TWO, token_types=b"\0\0\1\0"), labels=pb.LabelHead()))
    assert (batch.number, batch.head) == (7, HeadName.LABELS)
    assert [row.token_ids.tolist() for row in batch.rows] == [[5, 6, 7], [8]]
    assert [row.token_types.tolist() for row in batch.rows if row.token_types is not None] == [[0, 0, 1], [0]]


def test_parameters_stand_per_row() -> None:
    vectors = pb.VectorHead(dimensions=u32(2, 0), normalized=b"\0\1", prompt_lengths=u32(1, 0))
    batch = batch_from_wire(pb.RowBatch(text=texts(*TWO), vectors=vectors))
    assert [row.params for row in batch.rows] == [VectorParams(2, False, 1), VectorParams(0, True, 0)]
    empty = batch_from_wire(pb.RowBatch(text=texts(*TWO), vectors=pb.VectorHead()))
    assert [row.params for row in empty.rows] == [VectorParams(0, None, 0)] * 2


def test_parameters_of_tokens_masks_and_spans_are_cut_by_row() -> None:
    labels = batch_from_wire(pb.RowBatch(text=texts(*TWO), token_labels=pb.TokenLabelHead(is_wanted=b"\1\0\1\0")))
    wanted = [row.params.is_wanted_n.tolist() for row in labels.rows if isinstance(row.params, TokenLabelParams)]
    assert wanted == [[True, False, True], [False]]
    head = pb.MaskHead(
        mask_counts=u32(2, 1),
        positions=u32(0, 2, 0),
        top_k=u32(5, 1),
        target_counts=u32(0, 2),
        target_ids=u32(30, 20),
    )
    masks = batch_from_wire(pb.RowBatch(text=texts(*TWO), masks=head))
    assert [
        (row.params.positions.tolist(), row.params.top_k, row.params.target_ids.tolist())
        for row in masks.rows
        if isinstance(row.params, MaskParams)
    ] == [([0, 2], 5, []), ([0], 1, [30, 20])]
    span_head = pb.SpanHead(roles=b"\1\2\2\2", max_span_tokens=u32(15, 3), max_spans=u32(12, 1))
    spans = batch_from_wire(pb.RowBatch(text=texts(*TWO), spans=span_head))
    assert [
        (row.params.roles_n.tolist(), row.params.max_span_tokens, row.params.max_spans)
        for row in spans.rows
        if isinstance(row.params, SpanParams)
    ] == [([1, 2, 2], 15, 12), ([2], 3, 1)]


ROW = texts((5, 6, 7))
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"text": texts(), "labels": pb.LabelHead()}, "text.lengths"),
    "no texts": ({"labels": pb.LabelHead()}, "rows"),
    "no head": ({"text": ROW}, "head"),
    "half an id": (
        {"text": pb.TextRows(token_ids=b"\1\0", lengths=u32(1)), "labels": pb.LabelHead()},
        "text.token_ids",
    ),
    "more ids than lengths": (
        {"text": pb.TextRows(token_ids=u32(1, 2), lengths=u32(1)), "labels": pb.LabelHead()},
        "text.token_ids",
    ),
    "an empty row": ({"text": texts((), (1,)), "labels": pb.LabelHead()}, "text.lengths"),
    "a long row": ({"text": texts((1,) * 7), "labels": pb.LabelHead()}, "text.lengths"),
    "a large batch": ({"text": texts((1,) * 3, (1,) * 2, (1,)), "labels": pb.LabelHead()}, "text.lengths"),
    "a foreign id": ({"text": texts((1, 50)), "labels": pb.LabelHead()}, "text.token_ids"),
    "a foreign type": ({"text": texts((1,), token_types=b"\2"), "labels": pb.LabelHead()}, "text.token_types"),
    "few types": ({"text": texts((1, 2), token_types=b"\1"), "labels": pb.LabelHead()}, "text.token_types"),
    "a wide vector": ({"text": ROW, "vectors": pb.VectorHead(dimensions=u32(5))}, "vectors.dimensions"),
    "a prompt that is all": ({"text": ROW, "vectors": pb.VectorHead(prompt_lengths=u32(3))}, "vectors.prompt_lengths"),
    "few wanted": ({"text": ROW, "token_labels": pb.TokenLabelHead(is_wanted=b"\1")}, "token_labels.is_wanted"),
    "no mask": ({"text": ROW, "masks": pb.MaskHead(mask_counts=u32(0), top_k=u32(1))}, "masks.positions"),
    "a mask outside": (
        {"text": ROW, "masks": pb.MaskHead(mask_counts=u32(1), positions=u32(3), top_k=u32(1))},
        "masks.positions",
    ),
    "masks out of order": (
        {"text": ROW, "masks": pb.MaskHead(mask_counts=u32(2), positions=u32(1, 1), top_k=u32(1))},
        "masks.positions",
    ),
    "no ids asked for": (
        {"text": ROW, "masks": pb.MaskHead(mask_counts=u32(1), positions=u32(1), top_k=u32(0))},
        "masks.top_k",
    ),
    "no context": (
        {"text": ROW, "spans": pb.SpanHead(roles=b"\1\0\0", max_span_tokens=u32(1), max_spans=u32(1))},
        "spans.roles",
    ),
    "an unknown role": (
        {"text": ROW, "spans": pb.SpanHead(roles=b"\1\2\3", max_span_tokens=u32(1), max_spans=u32(1))},
        "spans.roles",
    ),
    "no span asked for": (
        {"text": ROW, "spans": pb.SpanHead(roles=b"\1\2\2", max_span_tokens=u32(1), max_spans=u32(0))},
        "spans.max_spans",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rule_31_a_batch_that_breaks_a_rule_is_refused_by_field(name: str) -> None:
    fields, path = BROKEN[name]
    with pytest.raises(BatchRejected) as caught:
        check_batch(batch_from_wire(pb.RowBatch(**fields)), TEXT_FACTS)
    assert caught.value.field == path


def test_rule_28_rows_behind_each_other_cost_their_own_tokens() -> None:
    batch = batch_from_wire(pb.RowBatch(text=texts((1,) * 5, (1,), (1,), (1,)), labels=pb.LabelHead()))
    with pytest.raises(BatchRejected):
        check_batch(batch, TEXT_FACTS)
    check_batch(batch, replace(TEXT_FACTS, counts_padding=False))


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def ids(*values: int) -> Any:
    return np.array(values, np.int64)


FAILED = RowFailure(FailureCode.NOT_FINITE, "NaN")


def test_answers_leave_failed_rows_out() -> None:
    answers = [floats(1, 2, 3), FAILED, floats(4)]
    message = answers_to_wire(RowAnswers(number=9, head=HeadName.VECTORS, answers=answers, wait_ns=5, compute_ns=6))
    assert (message.number, message.wait_ns, message.compute_ns) == (9, 5, 6)
    assert [(failure.row, failure.code, failure.message) for failure in message.failures] == [
        (1, pb.ROW_FAILURE_CODE_NOT_FINITE, "NaN")
    ]
    assert message.vectors.widths == u32(3, 1)
    assert f32(message.vectors.values) == [1, 2, 3, 4]


def test_answers_of_each_head_are_packed() -> None:
    def pack(head: HeadName, *answers: Any) -> Any:
        return getattr(answers_to_wire(RowAnswers(number=1, head=head, answers=answers)), head.value)

    tokens = pack(HeadName.TOKEN_VECTORS, floats(1, 2, 3, 4).reshape(2, 2), floats(5, 6).reshape(1, 2))
    assert (tokens.width, f32(tokens.values)) == (2, [1, 2, 3, 4, 5, 6])
    sparse = pack(HeadName.SPARSE_VECTORS, SparseVector(ids(3, 9), floats(0.5, 2)), SparseVector(ids(), floats()))
    assert (sparse.counts, sparse.ids, f32(sparse.weights)) == (u32(2, 0), u32(3, 9), [0.5, 2])
    labels = pack(HeadName.LABELS, floats(1, 2), floats(3, 4))
    assert (labels.num_labels, f32(labels.logits)) == (2, [1, 2, 3, 4])
    token_labels = pack(HeadName.TOKEN_LABELS, floats().reshape(0, 2), floats(0.25, 0.75).reshape(1, 2))
    assert (token_labels.num_labels, f32(token_labels.probabilities)) == (2, [0.25, 0.75])
    fillings = (Filling(ids(4, 5), floats(0.5, 0.25)), Filling(ids(6), floats(1)))
    masks = pack(HeadName.MASKS, fillings)
    assert (masks.counts, masks.ids, f32(masks.probabilities)) == (u32(2, 1), u32(4, 5, 6), [0.5, 0.25, 1])
    spans = pack(HeadName.SPANS, Spans(ids(2), ids(3), floats(0.5), 0.25), Spans(ids(), ids(), floats(), 0.0))
    assert (spans.counts, spans.starts, spans.ends) == (u32(1, 0), u32(2), u32(3))
    assert (f32(spans.scores), f32(spans.null_scores)) == ([0.5], [0.25, 0])


@pytest.mark.parametrize("head", HeadName)
def test_a_batch_whose_rows_all_failed_has_an_answer(head: HeadName) -> None:
    message = answers_to_wire(RowAnswers(number=1, head=head, answers=[FAILED]))
    assert message.WhichOneof("answer") == head.value
    assert len(message.failures) == 1


TWO_FILES = pb.MediaRows(files=[b"a", b"b"])


def floats32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def test_files_are_read_with_their_parameters() -> None:
    boxes = batch_from_wire(pb.RowBatch(media=TWO_FILES, boxes=pb.BoxHead(thresholds=floats32(0.5, 0.25))))
    assert list(boxes.rows) == [MediaRow(b"a", BoxParams(0.5)), MediaRow(b"b", BoxParams(0.25))]
    asked = pb.TranscriptHead(
        timestamps=[pb.TIMESTAMPS_WORDS, pb.TIMESTAMPS_NONE],
        languages=["de", ""],
        translates=b"\1\0",
        max_new_tokens=u32(9, 0),
        num_beams=u32(3, 0),
        chunk_lengths=floats32(20, 0),
        stride_lengths=floats32(4, 0),
        prompts=["Textmill", ""],
    )
    speech = batch_from_wire(pb.RowBatch(media=TWO_FILES, transcripts=asked))
    assert [row.params for row in speech.rows] == [
        TranscriptParams(Timestamps.WORDS, "de", True, 9, 3, 20.0, 4.0, "Textmill"),
        TranscriptParams(),
    ]
    plain = batch_from_wire(pb.RowBatch(media=TWO_FILES, transcripts=pb.TranscriptHead()))
    assert [row.params for row in plain.rows] == [TranscriptParams()] * 2


def test_texts_about_files_are_wanted_by_the_tasks_that_read_them_alone() -> None:
    two_texts = pb.MediaRows(files=[b"a", b"b"], texts=[pb.RowTexts(texts=["x"]), pb.RowTexts(texts=["y", "z"])])
    one_text = pb.MediaRows(files=[b"a", b"b"], texts=[pb.RowTexts(texts=["x"]), pb.RowTexts()])
    for task, good, bad in (
        ("zero-shot-image-classification", two_texts, (TWO_FILES, one_text)),
        ("depth-estimation", TWO_FILES, (two_texts, one_text)),
    ):
        facts = replace(FACTS, task=task)
        check_batch(batch_from_wire(pb.RowBatch(media=good, pair_scores=pb.PairScoreHead())), facts)
        for media in bad:
            with pytest.raises(BatchRejected) as caught:
                check_batch(batch_from_wire(pb.RowBatch(media=media, pair_scores=pb.PairScoreHead())), facts)
            assert caught.value.field == "media.texts"


def test_scores_and_depths_of_images_are_packed() -> None:
    answers = answers_to_wire(
        RowAnswers(number=1, head=HeadName.PAIR_SCORES, answers=[floats(0.5, 0.25), FAILED, floats(1)])
    )
    assert (answers.pair_scores.counts, f32(answers.pair_scores.scores)) == (u32(2, 1), [0.5, 0.25, 1])
    depths = [Depth(floats(1, 2, 3, 4, 5, 6).reshape(2, 3), b"one"), Depth(floats(7).reshape(1, 1), b"two")]
    message = answers_to_wire(RowAnswers(number=1, head=HeadName.DEPTHS, answers=depths)).depths
    assert (message.heights, message.widths) == (u32(2, 1), u32(3, 1))
    assert (f32(message.depths), list(message.pictures)) == ([1, 2, 3, 4, 5, 6, 7], [b"one", b"two"])


def test_texts_belong_to_the_file_at_their_place() -> None:
    media = pb.MediaRows(files=[b"a", b"b"], texts=[pb.RowTexts(texts=["x", "ü"]), pb.RowTexts()])
    batch = batch_from_wire(pb.RowBatch(media=media, labels=pb.LabelHead()))
    assert list(batch.rows) == [MediaRow(b"a", None, ("x", "ü")), MediaRow(b"b", None, ())]


PAGES = pb.MediaRows(files=[b"a", b"b"], texts=[pb.RowTexts(texts=["q", "x", "y"]), pb.RowTexts(texts=["r", "z"])])
EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1000, 1000)


def page_head(**changes: Any) -> pb.DocumentHead:
    numbers: dict[str, Any] = {"boxes": u32(*EDGES), "max_window_tokens": u32(64, 8), "strides": u32(3, 0)}
    return pb.DocumentHead(**{**numbers, "max_span_tokens": u32(15, 2), "max_spans": u32(1, 4), **changes})


def test_what_is_asked_of_a_writer_is_read_where_it_is_given() -> None:
    given: dict[str, Any] = {"max_new_tokens": 5, "max_length": 6, "min_length": 0, "num_beams": 2, "do_sample": False}
    given |= {"temperature": 0.5, "top_k": 0, "top_p": 0.25, "repetition_penalty": 1.5, "max_time_s": 2.0}
    given |= {"min_new_tokens": 3, "length_penalty": -1.0, "no_repeat_ngram_size": 2, "with_probability": True}
    head = pb.WritingHead(wishes=[pb.WritingWish(**given), pb.WritingWish()])
    batch = batch_from_wire(pb.RowBatch(media=TWO_FILES, writings=head))
    assert [row.params for row in batch.rows] == [WritingParams(**given), WritingParams()]


def test_pages_have_a_box_for_each_word_behind_the_question() -> None:
    batch = batch_from_wire(pb.RowBatch(media=PAGES, documents=page_head()))
    first, second = (row.params for row in batch.rows)
    assert isinstance(first, DocumentParams)
    assert isinstance(second, DocumentParams)
    assert (first.boxes.tolist(), second.boxes.tolist()) == ([[1, 2, 3, 4], [5, 6, 7, 8]], [[0, 0, 1000, 1000]])
    numbers = [(each.max_window_tokens, each.stride, each.max_span_tokens, each.max_spans) for each in (first, second)]
    assert numbers == [(64, 3, 15, 1), (8, 0, 2, 4)]


BROKEN_PAGES: dict[str, tuple[dict[str, Any], str]] = {
    "one wish": ({"media": TWO_FILES, "writings": pb.WritingHead(wishes=[pb.WritingWish()])}, "writings.wishes"),
    "no beam": (
        {"media": TWO_FILES, "writings": pb.WritingHead(wishes=[pb.WritingWish(num_beams=0)] * 2)},
        "writings.num_beams",
    ),
    "no temperature": (
        {"media": TWO_FILES, "writings": pb.WritingHead(wishes=[pb.WritingWish(temperature=float("nan"))] * 2)},
        "writings.temperature",
    ),
    "pages without words": ({"media": TWO_FILES, "documents": page_head()}, "media.texts"),
    "a box too few": ({"media": PAGES, "documents": page_head(boxes=u32(*EDGES[:8]))}, "documents.boxes"),
    "a box over the edge": (
        {"media": PAGES, "documents": page_head(boxes=u32(*EDGES[:11], 1001))},
        "documents.boxes",
    ),
    "a box that ends before its beginning": (
        {"media": PAGES, "documents": page_head(boxes=u32(9, *EDGES[1:]))},
        "documents.boxes",
    ),
    "no span": ({"media": PAGES, "documents": page_head(max_spans=u32(1, 0))}, "documents.max_window_tokens"),
    "one stride": ({"media": PAGES, "documents": page_head(strides=u32(1))}, "documents.strides"),
    "a window longer than the model": (
        {"media": PAGES, "documents": page_head(max_window_tokens=u32(64, 65))},
        "documents.max_window_tokens",
    ),
}


@pytest.mark.parametrize("name", BROKEN_PAGES)
def test_rule_31_pages_and_texts_that_break_a_rule_are_refused_by_field(name: str) -> None:
    fields, path = BROKEN_PAGES[name]
    heads = (HeadName.WRITINGS, HeadName.DOCUMENTS)
    facts = replace(FACTS, heads=heads, max_row_tokens=64, task="document-question-answering")
    with pytest.raises(BatchRejected) as caught:
        check_batch(batch_from_wire(pb.RowBatch(**fields)), facts)
    assert caught.value.field == path


def test_rule_26_texts_come_to_tasks_that_read_them() -> None:
    asked = pb.RowBatch(media=PAGES, labels=pb.LabelHead())
    check_batch(batch_from_wire(asked), replace(FACTS, task="visual-question-answering"))
    with pytest.raises(BatchRejected, match=r"media.texts"):
        check_batch(batch_from_wire(asked), replace(FACTS, task="image-classification"))


def test_answers_in_words_are_packed() -> None:
    texts_found = [Writing("a cat", 0.25, is_drawn=True), Writing("")]
    answers = answers_to_wire(RowAnswers(number=1, head=HeadName.WRITINGS, answers=texts_found)).writings.writings
    assert [(each.text, each.probability, each.is_drawn) for each in answers] == [("a cat", 0.25, True), ("", 0, False)]
    assert [each.HasField("probability") for each in answers] == [True, False]
    pages = [PageSpans(ids(3, 1), ids(4, 1), floats(0.5, 0.25), 0.125), PageSpans(ids(), ids(), floats(), 1.0)]
    message = answers_to_wire(RowAnswers(number=1, head=HeadName.DOCUMENTS, answers=pages)).documents
    assert (message.counts, message.starts, message.ends) == (u32(2, 0), u32(3, 1), u32(4, 1))
    assert (f32(message.scores), f32(message.null_scores)) == ([0.5, 0.25], [0.125, 1.0])


def wish(**fields: Any) -> pb.SoundWish:
    return pb.SoundWish(**{"speed": 1.0, **fields})


def strings(*wishes: pb.SoundWish, texts: tuple[str, ...] = ("one", "zwei 🐕")) -> pb.RowBatch:
    return pb.RowBatch(strings=pb.StringRows(texts=texts), sounds=pb.SoundHead(wishes=wishes))


STRING_FACTS = replace(FACTS, media="text", num_speakers=3)


def test_strings_have_their_wishes() -> None:
    numbers = {"speaking_rate": 0.5, "noise_scale": 0.0, "noise_scale_duration": 2.0, "speed": 1.5}
    asked = wish(format=pb.SOUND_FORMAT_OPUS, seed=2**64 - 1, speaker=2, **numbers)
    batch = batch_from_wire(strings(asked, wish()))
    assert list(batch.rows) == [
        StringRow("one", SoundParams(SoundFormat.OPUS, 2**64 - 1, 2, 0.5, 0.0, 2.0, 1.5)),
        StringRow("zwei 🐕", SoundParams()),
    ]
    check_batch(batch, STRING_FACTS)


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (strings(texts=()), "strings.texts"),
        (strings(wish()), "sounds.wishes"),
        (strings(wish(format=99), wish()), "sounds.wishes.format"),
        (strings(wish(speed=0.0), wish()), "sounds.wishes"),
        (strings(wish(speed=float("nan")), wish()), "sounds.wishes"),
        (strings(wish(speaking_rate=0.0), wish()), "sounds.wishes"),
        (strings(wish(), wish(noise_scale=-1.0)), "sounds.wishes"),
        (strings(wish(), wish(noise_scale_duration=float("nan"))), "sounds.wishes"),
        (strings(wish(), wish(speaker=3)), "sounds.wishes.speaker"),
        (strings(*[wish()] * 3, texts=("a", "b", "c")), "media.files"),
        (pb.RowBatch(text=texts(*TWO), sounds=pb.SoundHead()), "rows"),
    ],
)
def test_rule_31_a_batch_of_strings_that_breaks_a_rule_is_refused_by_field(message: pb.RowBatch, path: str) -> None:
    with pytest.raises(BatchRejected) as caught:
        check_batch(batch_from_wire(message), STRING_FACTS)
    assert caught.value.field == path


BROKEN_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "texts of one file": (
        {"media": pb.MediaRows(files=[b"a", b"b"], texts=[pb.RowTexts(texts=["x"])]), "labels": pb.LabelHead()},
        "media.texts",
    ),
    "no file": ({"media": pb.MediaRows(), "labels": pb.LabelHead()}, "media.files"),
    "three files": ({"media": pb.MediaRows(files=[b"a"] * 3), "labels": pb.LabelHead()}, "media.files"),
    "texts": ({"text": ROW, "labels": pb.LabelHead()}, "rows"),
    "one threshold": ({"media": TWO_FILES, "boxes": pb.BoxHead(thresholds=floats32(0.5))}, "boxes.thresholds"),
    "a threshold that is no number": (
        {"media": TWO_FILES, "boxes": pb.BoxHead(thresholds=floats32(0.5, float("nan")))},
        "boxes.thresholds",
    ),
    "one language": ({"media": TWO_FILES, "transcripts": pb.TranscriptHead(languages=["de"])}, "transcripts.languages"),
    "one prompt": ({"media": TWO_FILES, "transcripts": pb.TranscriptHead(prompts=["a"])}, "transcripts.prompts"),
    "a foreign language": (
        {"media": TWO_FILES, "transcripts": pb.TranscriptHead(languages=["de", "xx"])},
        "transcripts.languages",
    ),
    "strides that leave nothing": (
        {
            "media": TWO_FILES,
            "transcripts": pb.TranscriptHead(chunk_lengths=floats32(8, 8), stride_lengths=floats32(4, 1)),
        },
        "transcripts.stride_lengths",
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_rule_31_a_batch_of_files_that_breaks_a_rule_is_refused_by_field(name: str) -> None:
    fields, path = BROKEN_FILES[name]
    with pytest.raises(BatchRejected) as caught:
        check_batch(batch_from_wire(pb.RowBatch(**fields)), FACTS)
    assert caught.value.field == path


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        (pb.TranscriptHead(translates=b"\1\0"), "transcripts.translates"),
        (pb.TranscriptHead(max_new_tokens=u32(0, 5)), "transcripts.translates"),
        (pb.TranscriptHead(prompts=["", "a"]), "transcripts.translates"),
        (pb.TranscriptHead(timestamps=[pb.TIMESTAMPS_SEGMENTS] * 2), "transcripts.timestamps"),
    ],
)
def test_a_model_that_does_not_generate_refuses_what_only_generation_gives(asked: pb.TranscriptHead, path: str) -> None:
    batch = batch_from_wire(pb.RowBatch(media=TWO_FILES, transcripts=asked))
    check_batch(batch, FACTS)
    with pytest.raises(BatchRejected) as caught:
        check_batch(batch, replace(FACTS, languages=()))
    assert caught.value.field == path


def test_files_of_speech_are_sent_with_their_seconds() -> None:
    answers = [Sound(b"flac", 1.5), RowFailure(FailureCode.BAD_MEDIA, "no letter")]
    message = answers_to_wire(
        RowAnswers(number=1, head=HeadName.SOUNDS, answers=answers, audio_seconds=[1.5, 0.0], num_tokens=[7, 0])
    )
    assert (list(message.sounds.files), f32(message.audio_seconds)) == ([b"flac"], [1.5, 0.0])
    assert message.num_tokens == u32(7, 0)
    assert [failure.row for failure in message.failures] == [1]


def test_answers_of_files_are_packed() -> None:
    corners = np.array([[1, 2, 30, 40], [5, 6, 7, 8]])
    boxes = [Boxes(ids(3, 1), floats(0.5, 0.25), corners), Boxes(ids(), floats(), np.zeros((0, 4), np.int64))]
    message = answers_to_wire(RowAnswers(number=1, head=HeadName.BOXES, answers=boxes)).boxes
    assert (message.counts, message.label_ids) == (u32(2, 0), u32(3, 1))
    assert (f32(message.scores), message.boxes) == ([0.5, 0.25], u32(1, 2, 30, 40, 5, 6, 7, 8))
    words = (TranscriptChunk("a", 0.0, 1.5), TranscriptChunk(" b", 1.5, None))
    spoken = Transcript("a b", words, "german", (TranscriptChunk("a b", 0.5, 2.0),))
    answers = answers_to_wire(RowAnswers(number=1, head=HeadName.TRANSCRIPTS, answers=[spoken], audio_seconds=[2.5]))
    (transcript,) = answers.transcripts.transcripts
    assert (transcript.text, [chunk.text for chunk in transcript.chunks]) == ("a b", ["a", " b"])
    assert [chunk.HasField("end_s") for chunk in transcript.chunks] == [True, False]
    assert transcript.language == "german"
    assert [(part.text, part.start_s, part.end_s) for part in transcript.segments] == [("a b", 0.5, 2.0)]
    assert f32(answers.audio_seconds) == [2.5]


TABLE_FACTS = replace(FACTS, task="table-question-answering", heads=(HeadName.CELLS,), media="table", max_batch_files=1)


def _table(**changes: Any) -> pb.Table:
    return pb.Table(**{"columns": ["a", "b"], "cells": ["1", "2", "3", "4"], "questions": ["who?"], **changes})


def test_tables_are_read_with_their_questions() -> None:
    tables = pb.TableRows(tables=[_table(questions=["who?", "what?"], is_sequential=True)])
    batch = batch_from_wire(pb.RowBatch(number=4, tables=tables, cells=pb.CellHead()))
    check_batch(batch, TABLE_FACTS)
    assert batch.head is HeadName.CELLS
    assert list(batch.rows) == [TableRow(("a", "b"), ("1", "2", "3", "4"), ("who?", "what?"), is_sequential=True)]


@pytest.mark.parametrize(
    ("tables", "path"),
    [
        ([], "tables.tables"),
        ([_table(columns=[])], "tables.cells"),
        ([_table(cells=[])], "tables.cells"),
        ([_table(cells=["1", "2", "3"])], "tables.cells"),
        ([_table(questions=[])], "tables.questions"),
        ([_table(), _table()], "media.files"),
    ],
)
def test_rule_31_a_batch_of_tables_that_breaks_a_rule_is_refused_by_field(tables: list[pb.Table], path: str) -> None:
    with pytest.raises(BatchRejected) as refused:
        check_batch(
            batch_from_wire(pb.RowBatch(number=4, tables=pb.TableRows(tables=tables), cells=pb.CellHead())), TABLE_FACTS
        )
    assert refused.value.field == path


def test_rule_31_tables_and_files_are_not_taken_for_each_other() -> None:
    tables = batch_from_wire(pb.RowBatch(number=4, tables=pb.TableRows(tables=[_table()]), cells=pb.CellHead()))
    with pytest.raises(BatchRejected, match="reads files"):
        check_batch(tables, replace(TABLE_FACTS, media="image"))
    files = batch_from_wire(pb.RowBatch(number=4, media=pb.MediaRows(files=[b"one"]), cells=pb.CellHead()))
    with pytest.raises(BatchRejected, match="reads tables"):
        check_batch(files, TABLE_FACTS)


def test_cells_of_all_questions_are_packed() -> None:
    choices = [CellChoice([(0, 1), (1, 0)], 2, False, 2), CellChoice([], None, True, 1, is_cut=True)]
    answers = [CellAnswer(choices), RowFailure(FailureCode.BAD_MEDIA, "too wide"), CellAnswer([choices[0]])]
    message = answers_to_wire(RowAnswers(number=4, head=HeadName.CELLS, answers=answers))
    found = message.cells

    def read(data: bytes) -> list[int]:
        return np.frombuffer(data, dtype="<u4").tolist()

    assert read(found.counts) == [2, 0, 2]
    assert (read(found.rows), read(found.columns)) == ([0, 1, 0, 1], [1, 0, 1, 0])
    assert (read(found.label_ids), list(found.is_plain)) == ([3, 0, 3], [0, 1, 0])
    assert read(found.num_kept) == [2, 1, 2]
    assert list(found.is_cut) == [0, 1, 0]
    assert [(failure.row, failure.code) for failure in message.failures] == [(1, pb.ROW_FAILURE_CODE_BAD_MEDIA)]
