"""The router's end of the stream to rank 0.

The client waits for the shard, keeps one stream alive, and opens the next stream when that one breaks. The client knows
messages and times, but no requests: it hands each message to a `StreamHandler`, in the order of arrival.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import grpc
import grpc.aio
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from textmill_router.engine.plan_writer import PlanWriter
from textmill_router.engine.shard_facts import ShardFacts, ShardHealth, facts_from_proto, health_from_proto
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.wire import (
    PlanRejected,
    WireError,
    heartbeat_to_proto,
    rejected_from_proto,
    result_from_proto,
)
from textmill_router.scheduler.plan import Plan, StepResult

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20  # rule 4


@dataclass(frozen=True, slots=True)
class ShardClientOptions:
    """The way to the shard, and the times to wait for the shard."""

    link: ShardLink
    heartbeat_s: float = 1.0
    max_silence_s: float = 5.0  # a stream without a message for longer is cut
    health_poll_s: float = 0.1  # between two looks at a shard that is not ready
    health_timeout_s: float = 2.0
    hello_timeout_s: float = 5.0
    first_backoff_s: float = 0.05
    max_backoff_s: float = 1.0


class StreamHandler(Protocol):
    """Receiver of what a shard says.

    The client calls one method at a time, in the thread of the asyncio loop, so a method must not block. An exception
    ends `ShardClient.run`.
    """

    def on_health(self, health: ShardHealth) -> None: ...
    def on_hello(self, facts: ShardFacts, epoch: int) -> None: ...
    def on_result(self, result: StepResult) -> None: ...
    def on_rejected(self, rejected: PlanRejected) -> None: ...
    def on_heartbeat(
        self, *, overdue_s: float, num_memory_faults: int, media_bytes: int, num_media_encodes: int
    ) -> None: ...
    def on_lost(self, reason: str) -> None:
        """The stream has ended after its Hello, and with the stream the epoch."""


class ShardClient:
    """The owner of the connection to the shard, which opens one stream after the other."""

    def __init__(self, options: ShardClientOptions) -> None:
        self._options = options
        self._stream: _Stream | None = None
        self.stub: shard_pb2_grpc.ShardAsyncStub | None = None  # of the live stream's shard, for other calls to it

    def send(self, plans: Iterable[Plan]) -> None:
        """Queue plans for the live stream. Without a live stream the plans are dropped, because their epoch is over."""
        if self._stream is not None:
            self._stream.send(plans)

    def cut(self, reason: str) -> None:
        """End the live stream. `on_lost` follows, and no message comes before `on_lost`."""
        if self._stream is not None:
            self._stream.cut(reason)

    async def run(self, handler: StreamHandler) -> None:
        """Serve stream after stream, until cancelled or until the handler raises."""
        backoff_s = self._options.first_backoff_s
        while True:
            had_hello = await self._connect_once(handler)
            backoff_s = self._options.first_backoff_s if had_hello else min(backoff_s * 2, self._options.max_backoff_s)
            await asyncio.sleep(backoff_s)

    async def _connect_once(self, handler: StreamHandler) -> bool:
        """Wait until the shard is ready, then serve one stream to its end. Return whether the stream had a Hello."""
        # Each try has a channel of its own, because an old channel would wait its own, longer back-off before it
        # connects to a socket that has come back.
        try:
            channel = self._options.link.open(channel_options())
        except OSError as error:
            log.warning("no way to the shard", extra={"reason": str(error)})
            return False
        async with channel:
            stub = cast("shard_pb2_grpc.ShardAsyncStub", shard_pb2_grpc.ShardStub(channel))
            await self._wait_until_ready(stub, handler)
            stream = _Stream(stub, self._options)
            try:
                facts, epoch = await stream.open()
            except StreamLost as error:
                log.warning("shard refuses the stream", extra={"reason": str(error)})
                return False
            self._stream, self.stub = stream, stub
            try:
                handler.on_hello(facts, epoch)
                await stream.read_all(handler)
            except StreamLost as error:
                self._stream = self.stub = None
                log.warning("stream to the shard lost", extra={"epoch": epoch, "reason": str(error)})
                handler.on_lost(str(error))
            finally:
                self._stream = self.stub = None
                await stream.close()
            return True

    async def _wait_until_ready(self, stub: "shard_pb2_grpc.ShardAsyncStub", handler: StreamHandler) -> None:
        while True:
            try:
                report = await stub.Health(shard_pb2.HealthRequest(), timeout=self._options.health_timeout_s)
            except grpc.aio.AioRpcError as error:
                log.debug("shard does not answer yet", extra={"reason": error.details()})
            else:
                health = health_from_proto(report)
                handler.on_health(health)
                if health.is_ready:
                    return
            await asyncio.sleep(self._options.health_poll_s)


class StreamLost(Exception):
    """The stream has ended; the text says why."""


class _Stream:
    """One bidirectional call. The caller of `read_all` reads, one task writes, and one task watches for silence."""

    def __init__(self, stub: "shard_pb2_grpc.ShardAsyncStub", options: ShardClientOptions) -> None:
        self._options = options
        self._call = stub.Run()
        self._epoch = 0
        self._writer = PlanWriter(0)
        self._outbox: deque[Plan | None] = deque()  # None = a heartbeat
        self._outbox_filled = asyncio.Event()
        self._heard_s = time.monotonic()
        self._cut_reason: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> tuple[ShardFacts, int]:
        """Wait for the Hello, and return the shard's facts and the epoch. Raises StreamLost."""
        timer = asyncio.get_running_loop().call_later(self._options.hello_timeout_s, self.cut, "no Hello in time")
        try:
            message = await self._read()
        finally:
            timer.cancel()
        if message.WhichOneof("message") != "hello":
            self.cut("the first message is no Hello")
            raise StreamLost("the first message is no Hello")
        self._epoch = message.epoch
        self._writer = PlanWriter(message.epoch)
        self._tasks = [asyncio.create_task(self._write_all()), asyncio.create_task(self._watch())]
        return facts_from_proto(message.hello.info), message.epoch

    def send(self, plans: Iterable[Plan]) -> None:
        self._outbox.extend(plans)
        if self._outbox:
            self._outbox_filled.set()

    def cut(self, reason: str) -> None:
        self._cut_reason = reason
        self._call.cancel()

    async def read_all(self, handler: StreamHandler) -> None:
        """Hand each message to the handler, until the stream ends. Raises StreamLost at the end."""
        while True:
            message = await self._read()
            if self._cut_reason is not None:
                raise StreamLost(self._cut_reason)
            if message.epoch != self._epoch:
                self.cut(f"message of epoch {message.epoch} in epoch {self._epoch}")
                raise StreamLost(f"message of epoch {message.epoch} in epoch {self._epoch}")
            kind = message.WhichOneof("message")
            if kind == "result":
                try:
                    result = result_from_proto(message.result)
                except WireError as error:
                    self.cut(f"a result that cannot be read: {error}")
                    raise StreamLost(f"a result that cannot be read: {error}") from error
                handler.on_result(self._writer.add_failures(result))
            elif kind == "rejected":
                handler.on_rejected(rejected_from_proto(message.rejected))
            elif kind == "heartbeat":
                beat = message.heartbeat
                handler.on_heartbeat(
                    overdue_s=beat.overdue_ms / 1000,
                    num_memory_faults=beat.num_memory_faults,
                    media_bytes=beat.media_bytes,
                    num_media_encodes=beat.num_media_encodes,
                )

    async def close(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> shard_pb2.FromShard:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise StreamLost(f"{error.code().name}: {error.details()}") from error
        except asyncio.CancelledError:
            # gRPC raises CancelledError after `cut` too. A task that was itself cancelled must still end as cancelled.
            task = asyncio.current_task()
            if self._cut_reason is None or (task is not None and task.cancelling()):
                raise
            raise StreamLost(self._cut_reason) from None
        if message is grpc.aio.EOF:
            raise StreamLost("the shard has ended the stream")
        self._heard_s = time.monotonic()
        received: shard_pb2.FromShard = message
        return received

    async def _write_all(self) -> None:
        try:
            while True:
                await self._outbox_filled.wait()
                self._outbox_filled.clear()
                while self._outbox:
                    plan = self._outbox.popleft()
                    await self._call.write(
                        heartbeat_to_proto(self._epoch) if plan is None else self._writer.write(plan)
                    )
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # The call is over, and the reader raises the reason.
        except Exception:  # A plan that cannot be written is a bug, and the reader must not wait for its answer.
            log.exception("cannot write to the shard")
            self.cut("a plan could not be written")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.heartbeat_s)
            silence_s = time.monotonic() - self._heard_s
            if silence_s > self._options.max_silence_s:
                self.cut(f"nothing heard from the shard for {silence_s:.1f} s")
                return
            self._outbox.append(None)
            self._outbox_filled.set()


def channel_options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
