"""Files become ready rows together with their texts and parameters."""

from typing import Any

import pytest
import torch
from textmill_shard.media.errors import MediaError
from textmill_shard.tasks.media_rows import MediaReader, ReadyRow, image_read
from textmill_shard.tasks.rows import BoxParams, FailureCode, MediaRow, RowFailure

from tests.fakes.tiny_media import picture_file


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


@pytest.mark.parametrize(
    "error", [ValueError("Size must contain"), RuntimeError("sizes greater than 0"), ZeroDivisionError(), IndexError()]
)
def test_an_image_that_a_processor_cannot_shape_is_too_narrow(error: Exception) -> None:
    def processor(**options: Any) -> Any:
        raise error

    with pytest.raises(MediaError) as found:
        image_read(processor, max_pixels=1000)(picture_file(1, 60), ())
    assert str(found.value) == (
        "an image of 1 x 60 pixels is too narrow or too small for this model; send an image whose shorter side has "
        "more pixels"
    )


def test_an_image_for_which_there_is_no_memory_is_not_blamed() -> None:
    def processor(**options: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        image_read(processor, max_pixels=1000)(picture_file(1, 60), ())
