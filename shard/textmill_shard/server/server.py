"""The gRPC side of a shard: Info, Health, and on rank 0 the one live stream.

No thread of this file calls the step loop. The reader of the stream puts plans into the loop's inbox, and the writer
takes results out of the session. Calls of Health and Info have threads of their own.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import grpc
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc

from textmill_shard.engine.adapter_desk import AdapterHeld, UnknownAdapter
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_put import IncomingItem, MediaRefused, check_header
from textmill_shard.engine.media_store import NoMediaRoom
from textmill_shard.engine.session import EndReason, Session, StreamEnd
from textmill_shard.engine.status import ShardStatus
from textmill_shard.model.adapter import AdapterRefused, AdapterTooLarge
from textmill_shard.server.calls import abort, health_report
from textmill_shard.server.tcp import HANDSHAKE_TIMEOUT_MS, TcpPlace, open_tcp_port
from textmill_shard.server.wire import (
    adapter_to_wire,
    facts_to_wire,
    heartbeat_to_wire,
    hello_to_wire,
    media_header_from_wire,
    plan_from_wire,
    rejection_to_wire,
    result_to_wire,
)
from textmill_shard.slots.plan import PlanRejection, ShardFacts, StepResult
from textmill_shard.slots.plan_check import PlanRejected

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # rule 4
HEARTBEAT_S = 1.0
# One writes the stream, the others answer Health, Info, refused streams and calls about adapters and images.
NUM_THREADS = 16
MAX_ADAPTER_CALLS = 4  # loads that wait, each in a thread
ADAPTER_TIMEOUT_S = 120.0  # of a load whose caller sets no deadline
_Answer = TypeVar("_Answer")
_END_CODES = {
    EndReason.LEASE: grpc.StatusCode.DEADLINE_EXCEEDED,
    EndReason.PLAN_REJECTED: grpc.StatusCode.INVALID_ARGUMENT,
    EndReason.BAD_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    EndReason.WRONG_EPOCH: grpc.StatusCode.FAILED_PRECONDITION,
    EndReason.STOPPING: grpc.StatusCode.UNAVAILABLE,
    EndReason.FAILED: grpc.StatusCode.INTERNAL,
}

_NO_MEDIA = "the model of this shard takes text only"
_NO_ROWS = "the model of this shard writes text: its calls are Info and Run"


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A loaded model, ready to serve. Only rank 0 has an engine."""

    facts: ShardFacts
    engine: Engine | None
    adapter_digests: Callable[[], tuple[bytes, ...]] = tuple  # of the adapters that are loaded now

    def present_facts(self) -> ShardFacts:
        """Return the facts with the adapters that are loaded now."""
        return replace(self.facts, adapter_digests=self.adapter_digests())


class ShardService(shard_pb2_grpc.ShardServicer):
    """The service, which answers Health from the start and all calls after `set_loaded`."""

    def __init__(self, status: ShardStatus) -> None:
        self._status = status
        self._loaded: LoadedShard | None = None
        self._adapter_calls = threading.Semaphore(MAX_ADAPTER_CALLS)

    def set_loaded(self, loaded: LoadedShard) -> None:
        """Serve this model from now on. Called once."""
        self._loaded = loaded
        self._status.report_ready()

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.ShardInfo:
        """Answer with the facts of this rank; UNAVAILABLE while the model loads."""
        return facts_to_wire(self._require_loaded(context).present_facts())

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReport:
        """Answer with the state of the start and the age of the last step."""
        return health_report(self._status)

    def LoadAdapter(self, request: pb.LoadAdapterRequest, context: grpc.ServicerContext) -> pb.AdapterInfo:
        """Let every rank read an adapter, and answer with its digest.

        Ends with INVALID_ARGUMENT for a folder that is refused, with RESOURCE_EXHAUSTED for an adapter that does not
        fit, and with UNAVAILABLE while many other calls wait.
        """
        engine = self._engine_of_adapters(context)
        if not self._adapter_calls.acquire(blocking=False):
            abort(context, grpc.StatusCode.UNAVAILABLE, "other adapters are being loaded; try again")
        try:
            answer = engine.load_adapter(request.folder, expected_digest=request.expected_digest)
            return adapter_to_wire(_result_of(answer, context))
        except AdapterTooLarge as refused:
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused))
        except AdapterRefused as refused:
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(refused))
        finally:
            self._adapter_calls.release()

    def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: grpc.ServicerContext) -> pb.UnloadAdapterAnswer:
        """Free an adapter on every rank.

        Ends with NOT_FOUND where no adapter of the digest is loaded, and with FAILED_PRECONDITION while a slot has it.
        """
        engine = self._engine_of_adapters(context)
        try:
            _result_of(engine.unload_adapter(request.digest), context)
        except UnknownAdapter as error:
            abort(context, grpc.StatusCode.NOT_FOUND, str(error))
        except AdapterHeld as error:
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return pb.UnloadAdapterAnswer()

    def HasMedia(self, request: pb.MediaDigests, context: grpc.ServicerContext) -> pb.MediaDigests:
        """Answer with those of the digests whose items are kept, and renew their leases."""
        desk = self._media_desk(context)
        return pb.MediaDigests(digests=desk.store.kept(request.digests))

    def Put(self, request_iterator: Iterator[pb.MediaPart], context: grpc.ServicerContext) -> pb.PutAnswer:
        """Keep an item.

        Ends with INVALID_ARGUMENT for what is no item of the model, and with RESOURCE_EXHAUSTED where other items that
        are needed leave no room now.
        """
        desk = self._media_desk(context)
        try:
            return pb.PutAnswer(was_kept=take_item(request_iterator, desk))
        except MediaRefused as refused:
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(refused))
        except NoMediaRoom as full:
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(full))

    def Run(self, request_iterator: Iterator[pb.ToShard], context: grpc.ServicerContext) -> Iterator[pb.FromShard]:
        """Serve a stream to its end.

        Ends with UNAVAILABLE while the model loads, and with FAILED_PRECONDITION on other ranks than 0 and while
        another stream is live (rule 21).
        """
        loaded = self._require_loaded(context)
        engine = loaded.engine
        if engine is None:
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, f"rank {loaded.facts.rank} has no stream, rank 0 has")
        session = engine.open_session()
        if session is None:
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, "another stream is live")

        def leave() -> None:
            engine.close_session(session, EndReason.ROUTER_LEFT, "the router left")

        if not context.add_callback(leave):
            leave()
        reader = threading.Thread(
            target=_read, args=(request_iterator, engine, session), name=f"reader-{session.epoch}", daemon=True
        )
        reader.start()
        yield hello_to_wire(session.epoch, loaded.present_facts())
        yield from self._write(session, context)

    def TaskInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.TaskFacts:
        """End with UNIMPLEMENTED, because a model that writes text has no facts of a task."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_ROWS)

    def RunRows(self, request: pb.RowBatch, context: grpc.ServicerContext) -> pb.RowAnswers:
        """End with UNIMPLEMENTED, because a model that writes text computes no rows."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_ROWS)

    def _write(self, session: Session, context: grpc.ServicerContext) -> Iterator[pb.FromShard]:
        """Yield the messages of the step loop, and a heartbeat each second, until the session ends."""
        epoch = session.epoch
        next_beat_s = time.monotonic() + HEARTBEAT_S
        while True:
            item = session.next_item(next_beat_s - time.monotonic())
            match item:
                case StepResult():
                    yield result_to_wire(epoch, item)
                case PlanRejection():
                    yield rejection_to_wire(epoch, item)
                case StreamEnd():
                    code = _END_CODES.get(item.reason)
                    if code is None:
                        return
                    abort(context, code, item.message)
            if time.monotonic() >= next_beat_s:
                next_beat_s = time.monotonic() + HEARTBEAT_S
                yield heartbeat_to_wire(epoch, self._status.heartbeat())

    def _media_desk(self, context: grpc.ServicerContext) -> MediaDesk:
        loaded = self._require_loaded(context)
        if loaded.engine is None and loaded.facts.media_kinds:
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, f"rank {loaded.facts.rank} keeps nothing, rank 0 does")
        if loaded.engine is None or loaded.engine.media is None:
            abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_MEDIA)
        return loaded.engine.media

    def _engine_of_adapters(self, context: grpc.ServicerContext) -> Engine:
        loaded = self._require_loaded(context)
        if loaded.engine is None:
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, f"rank {loaded.facts.rank} loads nothing, rank 0 does")
        return loaded.engine

    def _require_loaded(self, context: grpc.ServicerContext) -> LoadedShard:
        if self._loaded is None:
            abort(context, grpc.StatusCode.UNAVAILABLE, f"loading: {self._status.snapshot.phase}")
        return self._loaded


def _read(messages: Iterator[pb.ToShard], engine: Engine, session: Session) -> None:
    """Hand the router's messages to the step loop until the router's side of the stream ends."""
    try:
        for message in messages:
            session.hear()
            if message.epoch != session.epoch:
                text = f"the epoch is {session.epoch}, got a message of epoch {message.epoch}"
                engine.close_session(session, EndReason.WRONG_EPOCH, text)
                return
            if message.HasField("plan"):
                data = message.plan.SerializeToString() if engine.needs_plan_bytes else b""
                try:
                    engine.submit_plan(session, plan_from_wire(message.plan), data)
                except PlanRejected as rejected:
                    engine.submit_plan(session, rejected, data)
            elif not message.HasField("heartbeat"):
                text = "a message must hold a plan or a heartbeat; router and shard must be of one release"
                engine.close_session(session, EndReason.BAD_MESSAGE, text)
                return
    except grpc.RpcError:
        pass  # the stream broke off, which also ends the session below and in the callback of the stream
    engine.close_session(session, EndReason.ROUTER_LEFT, "the router closed its side of the stream")


def take_item(parts: Iterator[pb.MediaPart], desk: MediaDesk) -> bool:
    """Keep the item whose header and bytes come, and return whether the desk had the item before.

    Raises MediaRefused and NoMediaRoom.
    """
    first = next(parts, None)
    if first is None or not first.HasField("header"):
        raise MediaRefused("the first message of an item is its header")
    header = media_header_from_wire(first.header)
    check_header(header, desk.facts, max_bytes=desk.store.max_bytes // 2)
    if desk.store.kept([header.digest]):
        return True
    item = IncomingItem(header, desk.store)
    try:
        for part in parts:
            if not part.HasField("data"):
                raise MediaRefused("an item has one header, and then bytes")
            item.write(part.data)
        item.finish()
    finally:
        item.abandon()
    return False


def _result_of(answer: Future[_Answer], context: grpc.ServicerContext) -> _Answer:
    """Wait for the step loop as long as the caller waits. Ends the call where the wait or the step loop ends."""
    try:
        return answer.result(min(context.time_remaining() or ADAPTER_TIMEOUT_S, ADAPTER_TIMEOUT_S))
    except TimeoutError:
        abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the adapter is still being read")
    except CancelledError:
        abort(context, grpc.StatusCode.UNAVAILABLE, "the shard is stopping")


def start_server(service: shard_pb2_grpc.ShardServicer, socket_path: Path, tcp: TcpPlace | None = None) -> grpc.Server:
    """Serve on a Unix socket that only this user may open, and over TCP with mutual TLS where a place is given.

    Raises OSError when a path or an address cannot be bound, and TlsFilesError.
    """
    server = grpc.server(
        ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="grpc"),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # two shards with one address would share the connections
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ],
    )
    shard_pb2_grpc.add_ShardServicer_to_server(service, server)
    previous_mask = os.umask(0o177)  # the socket is born with mode 0600
    try:
        bound = server.add_insecure_port(f"unix:{socket_path}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {socket_path}: {error}") from error
    finally:
        os.umask(previous_mask)
    if not bound:
        raise OSError(f"cannot listen on {socket_path}")
    if tcp is not None:
        open_tcp_port(server, tcp)
    server.start()
    return server
