"""The calls to rank 0 that ask for images and bring images, and the ways in which they fail."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from textmill_proto.v1 import shard_pb2

from textmill_router.engine.adapter_calls import ShardAway
from textmill_router.media.media_item import MediaItem, TensorPart

if TYPE_CHECKING:
    from textmill_proto.v1 import shard_pb2_grpc

ASK_TIMEOUT_S = 10.0
PUT_TIMEOUT_S = 60.0
PART_BYTES = 1 << 20


class MediaRefused(Exception):
    """The shard does not take an image. The text is the shard's sentence about the reason."""


class MediaFull(Exception):
    """Images that are needed leave no room on the shard now."""


async def ask_for_media(stub: "shard_pb2_grpc.ShardAsyncStub", digests: Collection[bytes]) -> frozenset[bytes]:
    """Return those of the images that the shard keeps, and renew their leases. Raises ShardAway."""
    try:
        answer = await stub.HasMedia(shard_pb2.MediaDigests(digests=digests), timeout=ASK_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise ShardAway(f"{error.code().name}: {error.details()}") from error
    except asyncio.CancelledError:
        raise _cancelled() from None
    return frozenset(answer.digests)


async def put_media(stub: "shard_pb2_grpc.ShardAsyncStub", item: MediaItem, tensors: Sequence[TensorPart]) -> None:
    """Give the shard an image. Raises MediaRefused, MediaFull and ShardAway."""
    try:
        await stub.Put(_parts(item, tensors), timeout=PUT_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
            raise MediaRefused(error.details() or error.code().name) from error
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise MediaFull(error.details()) from error
        raise ShardAway(f"{error.code().name}: {error.details()}") from error
    except asyncio.CancelledError:
        raise _cancelled() from None


async def _parts(item: MediaItem, tensors: Sequence[TensorPart]) -> AsyncIterator[shard_pb2.MediaPart]:
    headers = [shard_pb2.TensorHeader(name=one.name, dtype=one.dtype, shape=one.shape) for one in tensors]
    yield shard_pb2.MediaPart(
        header=shard_pb2.MediaHeader(digest=item.digest, kind=item.kind, tensors=headers, num_rows=item.num_rows)
    )
    for tensor in tensors:
        view = memoryview(tensor.data)
        for start in range(0, len(view), PART_BYTES):
            yield shard_pb2.MediaPart(data=bytes(view[start : start + PART_BYTES]))


def _cancelled() -> BaseException:
    """Return what a cancelled call raises, because gRPC raises CancelledError also when its channel is closed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return ShardAway("the connection to the shard was closed")
