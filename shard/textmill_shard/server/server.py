"""The gRPC side of a shard: Info, Health, and on rank 0 the one live stream.

No thread of this file calls the step loop. The reader of the stream puts plans into the loop's inbox, and the writer
takes results out of the session. Calls of Health and Info have threads of their own.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc

from textmill_shard.engine.engine import Engine
from textmill_shard.engine.session import EndReason, Session, StreamEnd
from textmill_shard.engine.status import ShardStatus
from textmill_shard.server.calls import abort, health_report
from textmill_shard.server.tcp import HANDSHAKE_TIMEOUT_MS, TcpPlace, open_tcp_port
from textmill_shard.server.wire import (
    facts_to_wire,
    heartbeat_to_wire,
    hello_to_wire,
    plan_from_wire,
    rejection_to_wire,
    result_to_wire,
)
from textmill_shard.slots.plan import PlanRejection, ShardFacts, StepResult
from textmill_shard.slots.plan_check import PlanRejected

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # rule 4
HEARTBEAT_S = 1.0
NUM_THREADS = 8  # one writes the stream, the others answer Health, Info and refused streams
_END_CODES = {
    EndReason.LEASE: grpc.StatusCode.DEADLINE_EXCEEDED,
    EndReason.PLAN_REJECTED: grpc.StatusCode.INVALID_ARGUMENT,
    EndReason.BAD_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    EndReason.WRONG_EPOCH: grpc.StatusCode.FAILED_PRECONDITION,
    EndReason.STOPPING: grpc.StatusCode.UNAVAILABLE,
    EndReason.FAILED: grpc.StatusCode.INTERNAL,
}

_NO_ROWS = "the model of this shard writes text: its calls are Info and Run"


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A loaded model, ready to serve. Only rank 0 has an engine."""

    facts: ShardFacts
    engine: Engine | None


class ShardService(shard_pb2_grpc.ShardServicer):
    """The service, which answers Health from the start and all calls after `set_loaded`."""

    def __init__(self, status: ShardStatus) -> None:
        self._status = status
        self._loaded: LoadedShard | None = None

    def set_loaded(self, loaded: LoadedShard) -> None:
        """Serve this model from now on. Called once."""
        self._loaded = loaded
        self._status.report_ready()

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.ShardInfo:
        """Answer with the facts of this rank; UNAVAILABLE while the model loads."""
        return facts_to_wire(self._require_loaded(context).facts)

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReport:
        """Answer with the state of the start and the age of the last step."""
        return health_report(self._status)

    def LoadAdapter(self, request: pb.LoadAdapterRequest, context: grpc.ServicerContext) -> pb.AdapterInfo:
        """Refuse every adapter, because this shard loads none."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, "this shard loads no adapters")

    def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: grpc.ServicerContext) -> pb.UnloadAdapterAnswer:
        """Refuse, because this shard has loaded no adapter."""
        abort(context, grpc.StatusCode.NOT_FOUND, f"no adapter {request.digest.hex()} is loaded")

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
        yield hello_to_wire(session.epoch, loaded.facts)
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
