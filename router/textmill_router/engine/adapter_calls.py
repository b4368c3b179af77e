"""The calls to a shard group that load and unload an adapter, and the ways in which they fail."""

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from textmill_proto.v1 import shard_pb2

from textmill_router.adapters.registry import AdapterFacts

if TYPE_CHECKING:
    from textmill_proto.v1 import shard_pb2_grpc

CALL_TIMEOUT_S = 120.0  # for a load on all ranks


class AdapterRefused(Exception):
    """The shard does not take the files of an adapter. The text is the shard's sentence about the reason."""


class AdapterInUse(Exception):
    """A slot of the shard still holds the adapter."""


class ShardAway(Exception):
    """The shard cannot be asked, or did not answer in time. The text says why."""


async def load_adapter(
    stub: "shard_pb2_grpc.ShardAsyncStub", folder: str, expected_digest: bytes = b""
) -> AdapterFacts:
    """Let every rank read the adapter of a folder, whose digest must be the expected one unless that is empty.

    Raises AdapterRefused and ShardAway.
    """
    message = shard_pb2.LoadAdapterRequest(folder=folder, expected_digest=expected_digest)
    try:
        info = await stub.LoadAdapter(message, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.UNIMPLEMENTED,
        ):
            raise AdapterRefused(error.details() or error.code().name) from error
        raise ShardAway(f"{error.code().name}: {error.details()}") from error
    except asyncio.CancelledError:
        raise _cancelled() from None
    return AdapterFacts(info.digest, info.max_rank, info.num_bytes, info.num_modules, tuple(info.target_names))


async def unload_adapter(stub: "shard_pb2_grpc.ShardAsyncStub", digest: bytes) -> None:
    """Let every rank give up an adapter. Does nothing for a digest that is not loaded.

    Raises AdapterInUse and ShardAway.
    """
    try:
        await stub.UnloadAdapter(shard_pb2.UnloadAdapterRequest(digest=digest), timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            raise AdapterInUse(error.details()) from error
        raise ShardAway(f"{error.code().name}: {error.details()}") from error
    except asyncio.CancelledError:
        raise _cancelled() from None


def _cancelled() -> BaseException:
    """Return what a cancelled call raises, because gRPC raises CancelledError also when its channel is closed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return ShardAway("the connection to the shard was closed")
