"""An image crosses the wire in parts of at most 1 MiB, which hold its tensors in their order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.media_calls import put_media
from textmill_router.media.media_item import MediaItem, TensorPart

MIB = 1 << 20
DIGEST = b"d" * 16


class Recorder:
    """A stub that keeps the messages of `Put`."""

    def __init__(self) -> None:
        self.parts: list[shard_pb2.MediaPart] = []

    async def Put(self, parts: AsyncIterator[shard_pb2.MediaPart], **options: Any) -> shard_pb2.PutAnswer:
        self.parts = [part async for part in parts]
        return shard_pb2.PutAnswer()


def tensor(name: str, num_bytes: int, seed: int) -> TensorPart:
    return TensorPart(name, "uint8", (num_bytes,), bytes((place * 7 + seed) % 251 for place in range(num_bytes)))


async def _unused() -> tuple[TensorPart, ...]:
    raise AssertionError("the tensors are given")


def put(*tensors: TensorPart) -> list[shard_pb2.MediaPart]:
    stub = Recorder()
    num_bytes = sum(len(one.data) for one in tensors)
    item = MediaItem(DIGEST, "llava", 3, num_bytes, (), prepare=_unused)
    asyncio.run(put_media(cast("Any", stub), item, tensors))
    return stub.parts


@pytest.mark.parametrize(
    ("num_bytes", "parts"),
    [(1, [1]), (MIB, [MIB]), (MIB + 1, [MIB, 1]), (2 * MIB + MIB // 2, [MIB, MIB, MIB // 2])],
)
def test_a_tensor_goes_in_parts_of_one_mebibyte(num_bytes: int, parts: list[int]) -> None:
    pixels = tensor("pixel_values", num_bytes, 1)
    header, *data = put(pixels)
    assert header.WhichOneof("part") == "header"
    assert (header.header.digest, header.header.kind, header.header.num_rows) == (DIGEST, "llava", 3)
    assert [len(part.data) for part in data] == parts
    assert b"".join(part.data for part in data) == pixels.data


def test_no_part_holds_the_bytes_of_two_tensors() -> None:
    pixels, sizes = tensor("pixel_values", MIB + 5, 1), tensor("image_sizes", 16, 2)
    header, *data = put(pixels, sizes)
    assert [(one.name, list(one.shape)) for one in header.header.tensors] == [
        ("pixel_values", [MIB + 5]),
        ("image_sizes", [16]),
    ]
    assert [len(part.data) for part in data] == [MIB, 5, 16]
    assert b"".join(part.data for part in data) == bytes(pixels.data) + bytes(sizes.data)
    assert max(part.ByteSize() for part in data) <= MIB + 16
