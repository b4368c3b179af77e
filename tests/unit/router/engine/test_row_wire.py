"""The message of a batch of files (rules 26 and 31 of docs/wire.md)."""

from array import array

from textmill_proto.v1 import shard_pb2
from textmill_router.engine.row_wire import answers_from_proto, batch_to_proto
from textmill_router.tasks.rows import (
    FileRow,
    LabelWish,
    RowFault,
    TranscriptAnswer,
    TranscriptPart,
    TranscriptWish,
)


def test_texts_about_a_file_travel_with_the_file() -> None:
    rows = [
        FileRow(b"one", LabelWish(), "inputs[0]", ("a cat", "ein Hündchen 🐕")),
        FileRow(b"two", LabelWish(), "inputs[1]"),
    ]
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
    )
    segments = (TranscriptPart("b", 0.5, 2.0),)
    assert answers_from_proto(message, 3, rows).results == [
        TranscriptAnswer("a", (), "german", segments, 1.5),
        RowFault("broken", is_of_client=True),
        TranscriptAnswer("c", (), "german", segments, 2.5),
    ]
