"""Batches of files and of tables and their answers on the wire (rules 26, 30 and 31 of docs/wire.md)."""

from array import array

import pytest
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.row_wire import answers_from_proto, batch_to_proto
from textmill_router.engine.wire import WireError
from textmill_router.tasks.row_results import (
    CellAnswer,
    CellChoice,
    DepthAnswer,
    DocumentAnswer,
    RowFault,
    SoundAnswer,
    Span,
    TranscriptAnswer,
    TranscriptPart,
    WritingAnswer,
)
from textmill_router.tasks.rows import FileRow, StringRow, TableRow
from textmill_router.tasks.wishes import (
    CellWish,
    DepthWish,
    DocumentWish,
    LabelWish,
    PairScoreWish,
    SoundFormat,
    SoundWish,
    TranscriptWish,
    WritingWish,
)

TEXTS = ("a cat", "ein Hündchen 🐕")
PAIRS = [FileRow(b"one", PairScoreWish(), "inputs[0]", TEXTS), FileRow(b"two", PairScoreWish(), "inputs[1]", ("x",))]


def f32(*values: float) -> bytes:
    return array("f", values).tobytes()


def u32(*values: int) -> bytes:
    return array("I", values).tobytes()


def test_texts_about_a_file_travel_with_the_file() -> None:
    rows = [FileRow(b"one", LabelWish(), "inputs[0]", TEXTS), FileRow(b"two", LabelWish(), "inputs[1]")]
    message = shard_pb2.RowBatch.FromString(batch_to_proto(3, rows).SerializeToString())
    assert list(message.media.files) == [b"one", b"two"]
    assert [list(each.texts) for each in message.media.texts] == [["a cat", "ein Hündchen 🐕"], []]


def test_files_without_texts_send_none() -> None:
    message = batch_to_proto(3, [FileRow(b"one", LabelWish(), "inputs")])
    assert list(message.media.texts) == []


def test_texts_take_room_in_a_batch() -> None:
    assert FileRow(b"four", LabelWish(), "inputs", ("ab", "ü")).size == 4 + 2 + 2


def test_prompts_travel_beside_the_speech() -> None:
    rows = [FileRow(b"one", TranscriptWish(prompt="Textmill"), "file"), FileRow(b"two", TranscriptWish(), "file")]
    assert list(batch_to_proto(3, rows).transcripts.prompts) == ["Textmill", ""]
    assert list(batch_to_proto(3, rows[1:]).transcripts.prompts) == []


def test_a_transcript_has_the_length_of_its_audio() -> None:
    rows = [FileRow(bytes(1), TranscriptWish(), "file") for _ in range(3)]
    part = shard_pb2.TranscriptChunk(text="b", start_s=0.5, end_s=2.0)
    transcripts = [shard_pb2.Transcript(text=text, language="german", segments=[part]) for text in "ac"]
    message = shard_pb2.RowAnswers(
        number=3,
        failures=[shard_pb2.RowFailure(row=1, code=shard_pb2.ROW_FAILURE_CODE_BAD_MEDIA, message="broken")],
        transcripts=shard_pb2.TranscriptAnswers(transcripts=transcripts),
        audio_seconds=array("f", [1.5, 0.0, 2.5]).tobytes(),
        num_tokens=array("I", [3, 0, 4]).tobytes(),
    )
    assert list(answers_from_proto(message, 3, rows).num_tokens) == [3, 0, 4]
    segments = (TranscriptPart("b", 0.5, 2.0),)
    assert answers_from_proto(message, 3, rows).results == [
        TranscriptAnswer("a", (), "german", segments, 1.5),
        RowFault("broken", is_of_client=True),
        TranscriptAnswer("c", (), "german", segments, 2.5),
    ]


def test_what_is_asked_of_a_writer_is_set_where_it_is_given() -> None:
    wishes = [WritingWish(max_new_tokens=5, do_sample=False, min_length=0, with_probability=True), WritingWish()]
    rows = [FileRow(b"one", wish, "inputs") for wish in wishes]
    first, second = shard_pb2.RowBatch.FromString(batch_to_proto(3, rows).SerializeToString()).writings.wishes
    assert {field.name for field, _ in first.ListFields()} == {
        *("max_new_tokens", "do_sample", "min_length", "with_probability")
    }
    assert (first.max_new_tokens, first.do_sample, first.min_length) == (5, False, 0)
    assert second.ListFields() == []


def test_texts_that_were_written_are_read_row_by_row() -> None:
    rows = [FileRow(b"one", WritingWish(), "inputs") for _ in range(3)]
    writings = [shard_pb2.Writing(text="a", probability=0.5), shard_pb2.Writing(text="", is_drawn=True)]
    message = shard_pb2.RowAnswers(
        number=3,
        failures=[shard_pb2.RowFailure(row=1, code=shard_pb2.ROW_FAILURE_CODE_BAD_TEXT, message="too long")],
        writings=shard_pb2.WritingAnswers(writings=writings),
    )
    assert answers_from_proto(message, 3, rows).results == [
        WritingAnswer("a", 0.5, is_drawn=False),
        RowFault("too long", is_of_client=True, is_of_text=True),
        WritingAnswer("", None, is_drawn=True),
    ]


def test_pages_travel_with_their_boxes_and_come_back_as_spans_of_words() -> None:
    wish = DocumentWish(array("I", [1, 2, 3, 4]), max_window_tokens=64, stride=0, max_span_tokens=15, max_spans=2)
    rows = [FileRow(b"one", wish, "inputs", ("q", "x")) for _ in range(2)]
    asked = batch_to_proto(3, rows).documents
    assert asked.boxes == array("I", [1, 2, 3, 4, 1, 2, 3, 4]).tobytes()
    assert (asked.max_window_tokens, asked.strides) == (array("I", [64, 64]).tobytes(), array("I", [0, 0]).tobytes())
    assert (asked.max_span_tokens, asked.max_spans) == (array("I", [15] * 2).tobytes(), array("I", [2] * 2).tobytes())
    arrays = {"counts": array("I", [1, 0]), "starts": array("I", [0]), "ends": array("I", [2])}
    scores = {"scores": array("f", [0.5]), "null_scores": array("f", [0.25, 1.0])}
    answers = shard_pb2.DocumentAnswers(**{name: each.tobytes() for name, each in {**arrays, **scores}.items()})
    assert answers_from_proto(shard_pb2.RowAnswers(number=3, documents=answers), 3, rows).results == [
        DocumentAnswer((Span(0, 2, 0.5),), 0.25),
        DocumentAnswer((), 1.0),
    ]


def test_scores_of_texts_are_read_row_by_row() -> None:
    assert batch_to_proto(3, PAIRS).WhichOneof("head") == "pair_scores"
    scores = shard_pb2.PairScoreAnswers(counts=u32(2, 1), scores=f32(0.5, 0.25, 1.0))
    found = answers_from_proto(shard_pb2.RowAnswers(number=3, pair_scores=scores), 3, PAIRS).results
    assert [list(each.values) for each in found] == [[0.5, 0.25], [1.0]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("counts", "scores"),
    [((2, 1), (0.5, 0.25)), ((2, 1), (0.5, 0.25, 1.0, 1.0)), ((1, 2), (0.5, 0.25, 1.0)), ((2,), (0.5, 0.25))],
)
def test_scores_that_do_not_fit_the_texts_break_the_wire(counts: tuple[int, ...], scores: tuple[float, ...]) -> None:
    answer = shard_pb2.PairScoreAnswers(counts=u32(*counts), scores=f32(*scores))
    with pytest.raises(WireError, match="do not have the lengths of its rows"):
        answers_from_proto(shard_pb2.RowAnswers(number=3, pair_scores=answer), 3, PAIRS)


def test_depths_are_read_image_by_image() -> None:
    rows = [FileRow(b"one", DepthWish(), "inputs[0]"), FileRow(b"two", DepthWish(), "inputs[1]")]
    assert batch_to_proto(3, rows).WhichOneof("head") == "depths"
    answer = shard_pb2.DepthAnswers(
        heights=u32(2, 1), widths=u32(2, 3), depths=f32(1, 2, 3, 4, 5, 6, 7), pictures=[b"p", b"q"]
    )
    found = answers_from_proto(shard_pb2.RowAnswers(number=3, depths=answer), 3, rows).results
    assert all(isinstance(each, DepthAnswer) for each in found)
    assert [
        (each.depths.width, list(each.depths.values), each.picture) for each in found if isinstance(each, DepthAnswer)
    ] == [(2, [1, 2, 3, 4], b"p"), (3, [5, 6, 7], b"q")]
    answer.depths += f32(8)
    with pytest.raises(WireError):
        answers_from_proto(shard_pb2.RowAnswers(number=3, depths=answer), 3, rows)


def test_a_text_that_cannot_be_read_is_a_fault_of_the_client_and_of_the_texts() -> None:
    failures = [
        shard_pb2.RowFailure(row=0, code=shard_pb2.ROW_FAILURE_CODE_BAD_TEXT, message="long"),
        shard_pb2.RowFailure(row=1, code=shard_pb2.ROW_FAILURE_CODE_BAD_MEDIA, message="bad"),
    ]
    answer = shard_pb2.RowAnswers(number=3, failures=failures, pair_scores=shard_pb2.PairScoreAnswers())
    assert list(answers_from_proto(answer, 3, PAIRS).results) == [
        RowFault("long", is_of_client=True, is_of_text=True),
        RowFault("bad", is_of_client=True),
    ]


TABLES = [
    TableRow(("a", "b"), ("1", "2", "3", "4"), ("who?", "and what?"), True, CellWish(), "inputs[0]"),
    TableRow(("ü",), ("",), ("",), False, CellWish(), "inputs[1]"),
]


def _cells(**changes: bytes) -> shard_pb2.RowAnswers:
    whole = {
        "counts": array("I", [2, 0, 1]).tobytes(),
        "rows": array("I", [0, 1, 0]).tobytes(),
        "columns": array("I", [1, 0, 0]).tobytes(),
        "label_ids": array("I", [3, 0, 1]).tobytes(),
        "is_plain": b"\0\1\1",
        "num_kept": array("I", [2, 1, 1]).tobytes(),
    }
    return shard_pb2.RowAnswers(number=3, cells=shard_pb2.CellAnswers(**{**whole, **changes}))


def test_tables_travel_as_texts() -> None:
    message = shard_pb2.RowBatch.FromString(batch_to_proto(3, TABLES).SerializeToString())
    assert message.WhichOneof("head") == "cells"
    first, second = message.tables.tables
    assert (list(first.columns), list(first.cells)) == (["a", "b"], ["1", "2", "3", "4"])
    assert (list(first.questions), first.is_sequential) == (["who?", "and what?"], True)
    assert (list(second.columns), list(second.cells), second.is_sequential) == (["ü"], [""], False)


def test_cells_belong_to_the_questions_in_their_order() -> None:
    assert answers_from_proto(_cells(), 3, TABLES).results == [
        CellAnswer((CellChoice(((0, 1), (1, 0)), 2, False, 2), CellChoice((), None, True, 1))),
        CellAnswer((CellChoice(((0, 0),), 0, True, 1),)),
    ]
    cut = answers_from_proto(_cells(is_cut=b"\0\1\0"), 3, TABLES).results
    assert [one.is_cut for answer in cut if isinstance(answer, CellAnswer) for one in answer.choices] == [
        *(False, True, False)
    ]
    with pytest.raises(WireError):
        answers_from_proto(_cells(is_cut=b"\0\1"), 3, TABLES)


@pytest.mark.parametrize("name", ["counts", "rows", "columns", "label_ids", "is_plain", "num_kept"])
def test_cells_of_other_lengths_are_a_fault_of_the_wire(name: str) -> None:
    whole = getattr(_cells().cells, name)
    size = 1 if name == "is_plain" else 4
    for part in (whole[:-size], whole + whole[:size]):
        with pytest.raises(WireError):
            answers_from_proto(_cells(**{name: part}), 3, TABLES)


def test_answers_to_more_questions_than_were_asked_are_a_fault_of_the_wire() -> None:
    with pytest.raises(WireError):
        answers_from_proto(_cells(), 3, TABLES[:1])


def test_strings_travel_with_their_wishes() -> None:
    rows = [
        StringRow("one", SoundWish(SoundFormat.PCM, 2**64 - 1, 2, 0.5, 0.0, 2.0, 1.5), "input"),
        StringRow("zwei 🐕", SoundWish(SoundFormat.FLAC, 7), "inputs"),
    ]
    message = shard_pb2.RowBatch.FromString(batch_to_proto(3, rows).SerializeToString())
    assert list(message.strings.texts) == ["one", "zwei 🐕"]
    full, plain = message.sounds.wishes
    assert full == shard_pb2.SoundWish(
        format=shard_pb2.SOUND_FORMAT_PCM,
        seed=2**64 - 1,
        speaker=2,
        speaking_rate=0.5,
        noise_scale=0.0,
        noise_scale_duration=2.0,
        speed=1.5,
    )
    assert plain == shard_pb2.SoundWish(format=shard_pb2.SOUND_FORMAT_FLAC, seed=7, speed=1.0)
    assert not plain.HasField("noise_scale")
    assert (rows[1].size, rows[1].num_tokens) == (6, 0)


def test_each_format_of_speech_has_its_number() -> None:
    for sound_format in SoundFormat:
        (wish,) = batch_to_proto(1, [StringRow("a", SoundWish(sound_format, 0), "input")]).sounds.wishes
        assert shard_pb2.SoundFormat.Name(wish.format) == f"SOUND_FORMAT_{sound_format.name}"


def test_files_of_speech_come_back_in_order() -> None:
    rows = [StringRow("a", SoundWish(SoundFormat.FLAC, 0), "input") for _ in range(2)]
    message = shard_pb2.RowAnswers(number=3, sounds=shard_pb2.SoundAnswers(files=[b"x", b"y"]))
    assert answers_from_proto(message, 3, rows).results == [SoundAnswer(b"x"), SoundAnswer(b"y")]
