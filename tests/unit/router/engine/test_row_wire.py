"""The message of a batch of files (rules 26 and 31 of docs/wire.md)."""

from textmill_proto.v1 import shard_pb2
from textmill_router.engine.row_wire import batch_to_proto
from textmill_router.tasks.rows import FileRow, LabelWish


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
