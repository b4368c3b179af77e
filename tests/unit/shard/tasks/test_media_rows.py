"""Files become ready rows together with their texts and parameters."""

from textmill_shard.media.errors import MediaError
from textmill_shard.tasks.media_rows import MediaReader, ReadyRow
from textmill_shard.tasks.rows import BoxParams, FailureCode, MediaRow, RowFailure


def test_a_file_is_read_with_the_texts_about_it() -> None:
    seen: list[tuple[bytes, tuple[str, ...]]] = []

    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        seen.append((data, texts))
        if data == b"bad":
            raise MediaError("no picture")
        return ReadyRow({}, size=(len(data), len(texts)))

    reader = MediaReader(read)
    try:
        rows = [MediaRow(b"one", BoxParams(0.5), ("a", "b")), MediaRow(b"bad", None, ("c",)), MediaRow(b"three")]
        first, bad, last = reader.read(rows)
    finally:
        reader.close()
    assert sorted(seen) == [(b"bad", ("c",)), (b"one", ("a", "b")), (b"three", ())]
    assert first == ReadyRow({}, BoxParams(0.5), ("a", "b"), size=(3, 2))
    assert bad == RowFailure(FailureCode.BAD_MEDIA, "no picture")
    assert last == ReadyRow({}, size=(5, 0))
