"""The router's connection to one shard of rows: looks for the shard, asks for its health, and sends batches."""

import asyncio
import logging
import time
from typing import Protocol, cast

import grpc
import grpc.aio
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from textmill_router.engine.row_wire import task_facts_from_proto
from textmill_router.engine.shard_client import ShardClientOptions, channel_options
from textmill_router.engine.shard_facts import ShardHealth, health_from_proto
from textmill_router.tasks.task_facts import TaskFacts

log = logging.getLogger(__name__)

_LOST_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class ShardLost(Exception):
    """The shard has ended, or the connection to the shard; its batches are lost."""


class ShardAway(Exception):
    """There is no shard, so that the batch was not sent."""


class BatchRefused(Exception):
    """The shard has refused a batch, which is a mistake of router or shard. The text says why."""


class RowHandler(Protocol):
    """Receiver of what a client learns. The methods run in the thread of the asyncio loop and must not block."""

    def on_health(self, health: ShardHealth) -> None: ...
    def on_facts(self, facts: TaskFacts) -> None: ...
    def on_beat(self, *, is_overdue: bool) -> None: ...
    def on_lost(self, reason: str) -> None:
        """The shard was there, and is gone."""


class RowClient:
    """The owner of the connection. `run` serves until cancelled; `send` works between `on_facts` and `on_lost`."""

    def __init__(self, options: ShardClientOptions) -> None:
        self._options = options
        self._stub: shard_pb2_grpc.ShardAsyncStub | None = None
        self._lost = asyncio.Event()

    async def send(self, batch: shard_pb2.RowBatch) -> shard_pb2.RowAnswers:
        """Return the answers to a batch. A cancelled call cancels the batch.

        Raises ShardAway, ShardLost and BatchRefused.
        """
        if self._stub is None:
            raise ShardAway("the shard is away")
        try:
            answers: shard_pb2.RowAnswers = await self._stub.RunRows(batch)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            if error.code() in _LOST_CODES:
                self._lost.set()
                raise ShardLost(reason) from error
            raise BatchRefused(reason) from error
        except asyncio.CancelledError:
            # gRPC raises CancelledError also in the batches of a channel that `run` closes, because the shard is lost.
            # A task that was itself cancelled must still end as cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ShardLost("the connection was closed") from None
        return answers

    async def run(self, handler: RowHandler) -> None:
        """Look for the shard again and again, until cancelled or until the handler raises."""
        while True:
            # Each try has a channel of its own, because an old channel would wait its own, longer back-off.
            try:
                channel = self._options.link.open(channel_options())
            except OSError as error:
                log.warning("no way to the shard", extra={"reason": str(error)})
            else:
                async with channel:
                    await self._connect_once(channel, handler)
            await asyncio.sleep(self._options.first_backoff_s)

    async def _connect_once(self, channel: grpc.aio.Channel, handler: RowHandler) -> None:
        """Wait until the shard is ready, then serve until the shard is lost."""
        stub = cast("shard_pb2_grpc.ShardAsyncStub", shard_pb2_grpc.ShardStub(channel))
        facts = await self._find(stub, handler)
        if facts is None:
            return
        self._lost.clear()
        self._stub = stub
        try:
            handler.on_facts(facts)
            reason = await self._watch(stub, handler)
        finally:
            self._stub = None
        log.warning("shard of rows lost", extra={"reason": reason})
        handler.on_lost(reason)

    async def _find(self, stub: "shard_pb2_grpc.ShardAsyncStub", handler: RowHandler) -> TaskFacts | None:
        """Return the facts of a shard that is ready, or None where this connection has no such shard."""
        while True:
            try:
                report = await stub.Health(shard_pb2.HealthRequest(), timeout=self._options.health_timeout_s)
            except grpc.aio.AioRpcError as error:
                log.debug("shard does not answer yet", extra={"reason": error.details()})
            else:
                health = health_from_proto(report)
                handler.on_health(health)
                if health.is_ready:
                    break
            await asyncio.sleep(self._options.health_poll_s)
        try:
            return task_facts_from_proto(
                await stub.TaskInfo(shard_pb2.InfoRequest(), timeout=self._options.hello_timeout_s)
            )
        except grpc.aio.AioRpcError as error:
            log.warning("shard tells no facts", extra={"reason": f"{error.code().name}: {error.details()}"})
            return None

    async def _watch(self, stub: "shard_pb2_grpc.ShardAsyncStub", handler: RowHandler) -> str:
        """Ask for the health until the shard is lost, and return the reason."""
        heard_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(self._options.heartbeat_s):
                    await self._lost.wait()
                return "a batch was lost with its connection"
            except TimeoutError:
                pass
            try:
                report = await stub.Health(shard_pb2.HealthRequest(), timeout=self._options.max_silence_s)
            except grpc.aio.AioRpcError as error:
                if error.code() in _LOST_CODES or time.monotonic() - heard_s > self._options.max_silence_s:
                    return f"{error.code().name}: {error.details()}"
            else:
                heard_s = time.monotonic()
                handler.on_beat(is_overdue=report.overdue_ms > 0)
