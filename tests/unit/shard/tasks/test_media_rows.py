"""Files become ready rows together with their texts and parameters."""

import threading
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


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_file_for_which_there_is_no_memory_fails_alone(error: Exception) -> None:
    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        if data == b"large":
            raise error
        return ReadyRow({}, size=(1, 1))

    reader = MediaReader(read)
    try:
        found = reader.read([MediaRow(b"one"), MediaRow(b"large"), MediaRow(b"three")])
    finally:
        reader.close()
    assert found[0] == found[2] == ReadyRow({}, size=(1, 1))
    assert found[1] == RowFailure(
        FailureCode.NO_MEMORY, "there is no memory to read this input, even alone; send a smaller one"
    )


def test_a_file_that_finds_no_memory_beside_others_is_read_once_more_behind_them() -> None:
    beside = threading.Barrier(2, timeout=10)
    order: list[bytes] = []

    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        order.append(data)
        if order.count(data) == 1 and data in (b"large", b"other"):
            beside.wait()
            if data == b"large":
                raise MemoryError
        return ReadyRow({}, size=(len(data), 0))

    reader = MediaReader(read)
    try:
        found = reader.read([MediaRow(b"large"), MediaRow(b"other"), MediaRow(b"last")])
    finally:
        reader.close()
    assert found == [ReadyRow({}, size=(size, 0)) for size in (5, 5, 4)]
    assert order[-1] == b"large"
    assert sorted(order) == [b"large", b"large", b"last", b"other"]
