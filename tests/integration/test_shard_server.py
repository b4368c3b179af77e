"""The shard's gRPC side in one process: a real socket, the real step loop, the model of the step harness."""

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.server.server import LoadedShard, ShardService, start_server
from textmill_shard.slots.plan import ShardFacts

from tests.fakes.step_engine import make_engine
from tests.fakes.step_harness import FACTS, PrefixRunner, greedy

WAIT_S = 10.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
PROMPT = [5, 3, 8, 1, 9]


class Served:
    """A shard behind its socket, and a channel to the shard."""

    def __init__(self, folder: Path, *, facts: ShardFacts, gate: threading.Semaphore | None, lease_s: float) -> None:
        self.socket = folder / "shard.sock"
        self.facts = facts
        self.status = ShardStatus()
        self.service = ShardService(self.status)
        self.runner = PrefixRunner(num_blocks=facts.num_blocks, gate=gate)
        executor = StepExecutor(runner=self.runner, facts=facts)
        self.engine = make_engine(executor, facts, status=self.status, lease_s=lease_s)
        self.server = start_server(self.service, self.socket)
        limits = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
        ]
        self.channel = grpc.insecure_channel(f"unix:{self.socket}", options=limits)
        self.stub = shard_pb2_grpc.ShardStub(self.channel)

    def finish_loading(self) -> None:
        self.service.set_loaded(LoadedShard(facts=self.facts, engine=self.engine))


@contextmanager
def serve(
    folder: Path, *, facts: ShardFacts = FACTS, gate: threading.Semaphore | None = None, lease_s: float = 60.0
) -> Iterator[Served]:
    """A loaded shard."""
    served = Served(folder, facts=facts, gate=gate, lease_s=lease_s)
    loop = threading.Thread(target=served.engine.run)
    loop.start()
    try:
        served.finish_loading()
        yield served
    finally:
        if gate is not None:
            gate.release(1000)
        served.engine.stop()
        loop.join(WAIT_S)
        served.channel.close()
        served.server.stop(0).wait(WAIT_S)
        assert not loop.is_alive()


class Stream:
    """The router's side of the stream."""

    def __init__(self, stub: shard_pb2_grpc.ShardStub) -> None:
        self._outbox: SimpleQueue[pb.ToShard | None] = SimpleQueue()
        self.call = stub.Run(iter(self._outbox.get, None))
        self.hello = next(self.call)
        self.epoch = self.hello.epoch

    def send(self, plan: pb.Plan, *, epoch: int | None = None) -> None:
        self._outbox.put(pb.ToShard(epoch=self.epoch if epoch is None else epoch, plan=plan))

    def send_as_it_is(self, message: pb.ToShard) -> None:
        self._outbox.put(message)

    def beat(self) -> None:
        self._outbox.put(pb.ToShard(epoch=self.epoch, heartbeat=pb.Heartbeat()))

    def next(self, kind: str) -> pb.FromShard:
        """Read up to the next message of this kind, and return the message."""
        for message in self.call:
            if message.HasField(kind):
                return message
        raise AssertionError(f"the stream ended without a {kind}")

    def tokens(self, num_tokens: int) -> list[int]:
        found: list[int] = []
        while len(found) < num_tokens:
            found += np.frombuffer(self.next("result").result.tokens, dtype="<u4").tolist()
        return found

    def end_code(self) -> grpc.StatusCode:
        """Read to the end of the stream, and return its status."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def close(self) -> None:
        self.call.cancel()
        self._outbox.put(None)


@contextmanager
def connect(served: Served) -> Iterator[Stream]:
    stream = Stream(served.stub)
    try:
        yield stream
    finally:
        stream.close()


def pack(values: list[int]) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


def admit(slot: int = 0, prompt: list[int] = PROMPT, *, max_new: int = 4, num_blocks: int = 4) -> pb.Admit:
    return pb.Admit(
        request_id=7,
        slot=slot,
        prompt_ids=pack(prompt),
        block_ids=[pack(list(range(num_blocks)))],
        max_new_tokens=max_new,
        sampling=pb.Sampling(temperature=1.0, top_p=1.0, typical_p=1.0, repetition_penalty=1.0),
    )


def test_a_request_is_answered_over_the_socket(tmp_path: Path) -> None:
    with serve(tmp_path) as served, connect(served) as stream:
        assert stream.hello.hello.info == served.stub.Info(pb.InfoRequest(), timeout=WAIT_S)
        stream.send(pb.Plan(number=1, admits=[admit()]))
        assert stream.tokens(4) == greedy(PROMPT, 4)


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        mode = os.stat(served.socket).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


def test_a_path_that_cannot_be_bound_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot listen"):
        start_server(ShardService(ShardStatus()), tmp_path / "missing" / "shard.sock")


def test_while_loading_health_tells_the_phase_and_the_rest_is_unavailable(tmp_path: Path) -> None:
    served = Served(tmp_path, facts=FACTS, gate=None, lease_s=60.0)
    try:
        served.status.report_loading("weights", 0.25)
        report = served.stub.Health(pb.HealthRequest(), timeout=WAIT_S)
        assert (report.state, report.phase, report.progress) == (pb.SHARD_STATE_LOADING, "weights", 0.25)
        with pytest.raises(grpc.RpcError) as info:
            served.stub.Info(pb.InfoRequest(), timeout=WAIT_S)
        assert info.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as run:
            next(served.stub.Run(iter([])))
        assert run.value.code() is grpc.StatusCode.UNAVAILABLE
        served.status.report_failure("no such file")
        report = served.stub.Health(pb.HealthRequest(), timeout=WAIT_S)
        assert (report.state, report.detail) == (pb.SHARD_STATE_FAILED, "no such file")
    finally:
        served.channel.close()
        served.server.stop(0).wait(WAIT_S)


def test_health_is_answered_while_a_step_is_under_way(tmp_path: Path) -> None:
    gate = threading.Semaphore(1)
    with serve(tmp_path, gate=gate) as served, connect(served) as stream:
        stream.send(pb.Plan(number=1, admits=[admit()]))
        stream.next("result")
        # The second step waits at the gate.
        report = served.stub.Health(pb.HealthRequest(), timeout=WAIT_S)
        while not report.is_busy:
            report = served.stub.Health(pb.HealthRequest(), timeout=WAIT_S)
        assert (report.state, report.last_step) == (pb.SHARD_STATE_READY, 1)


def test_a_heartbeat_comes_each_second(tmp_path: Path) -> None:
    with serve(tmp_path) as served, connect(served) as stream:
        stream.send(pb.Plan(number=1, admits=[admit()]))
        stream.tokens(4)
        beat = stream.next("heartbeat").heartbeat
        assert (beat.last_step, beat.plan_applied) == (4, 1)
        assert beat.last_step_age_ms < WAIT_S * 1000


def test_rule_04_a_message_above_grpcs_own_limit_is_taken(tmp_path: Path) -> None:
    num_tokens = 2_000_000  # 8 MB; the default limit is 4 MiB
    facts = replace(FACTS, max_model_tokens=0, num_blocks=num_tokens // 4 + 8)
    with serve(tmp_path, facts=facts) as served, connect(served) as stream:
        stream.send(pb.Plan(number=1, admits=[admit(prompt=[1] * num_tokens, num_blocks=0)]))
        assert stream.next("result").result.plan_applied == 1


def test_rule_20_a_rejected_plan_is_named_and_ends_the_stream(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        with connect(served) as stream:
            stream.send(pb.Plan(number=2, drops=[pb.Drop(slot=1, request_id=1)]))
            rejected = stream.next("rejected").rejected
            assert (rejected.plan, rejected.field) == (2, "number")
            assert "plan 1 comes next" in rejected.message
            assert stream.end_code() is grpc.StatusCode.INVALID_ARGUMENT
        with connect(served) as stream:
            stream.send(pb.Plan(number=1, admits=[admit()]))
            assert stream.tokens(4) == greedy(PROMPT, 4)


def test_rule_20_bytes_that_are_no_ids_are_rejected(tmp_path: Path) -> None:
    with serve(tmp_path) as served, connect(served) as stream:
        broken = admit(slot=2)
        broken.prompt_ids = b"abc"
        stream.send(pb.Plan(number=1, admits=[broken]))
        rejected = stream.next("rejected").rejected
        assert (rejected.slot, rejected.field) == (2, "admits.prompt_ids")


def test_rule_21_a_second_stream_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with serve(tmp_path) as served, connect(served) as stream:
        with pytest.raises(grpc.RpcError) as second:
            next(served.stub.Run(iter([])))
        assert second.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        stream.send(pb.Plan(number=1, admits=[admit()]))
        assert stream.tokens(4) == greedy(PROMPT, 4)


def test_rule_21_a_cut_stream_makes_room_for_a_new_epoch(tmp_path: Path) -> None:
    gate = threading.Semaphore(2)
    with serve(tmp_path, gate=gate) as served:
        with connect(served) as stream:
            stream.send(pb.Plan(number=1, admits=[admit(max_new=10)]))
            stream.tokens(2)
            first_epoch = stream.epoch
        gate.release(100)
        again = reconnect(served)
        try:
            assert again.epoch == first_epoch + 1
            again.send(pb.Plan(number=1, admits=[admit(prompt=[2, 4])]))
            assert again.tokens(4) == greedy([2, 4], 4)
        finally:
            again.close()


def reconnect(served: Served) -> Stream:
    """Try until the server has noticed the cut, which takes a moment."""
    while True:
        try:
            return Stream(served.stub)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise


def test_rule_21_a_silent_router_loses_its_stream(tmp_path: Path) -> None:
    with serve(tmp_path, lease_s=0.3) as served, connect(served) as stream:
        assert stream.end_code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_message_of_another_epoch_ends_the_stream(tmp_path: Path) -> None:
    with serve(tmp_path) as served, connect(served) as stream:
        stream.send(pb.Plan(number=1, admits=[admit()]), epoch=stream.epoch + 1)
        assert stream.end_code() is grpc.StatusCode.FAILED_PRECONDITION


# Messages of a router that is broken or hostile, each with the status that ends its stream.
HOSTILE: list[tuple[str, Callable[[int], pb.ToShard], grpc.StatusCode]] = [
    ("nothing", lambda epoch: pb.ToShard(epoch=epoch), grpc.StatusCode.INVALID_ARGUMENT),
    ("no epoch", lambda epoch: pb.ToShard(heartbeat=pb.Heartbeat()), grpc.StatusCode.FAILED_PRECONDITION),
    (
        "an old epoch",
        lambda epoch: pb.ToShard(epoch=epoch - 1, heartbeat=pb.Heartbeat()),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    (
        "an epoch of all bits",
        lambda epoch: pb.ToShard(epoch=2**64 - 1, plan=pb.Plan(number=1)),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    (
        "a plan out of turn",
        lambda epoch: pb.ToShard(epoch=epoch, plan=pb.Plan(number=2**63)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "a drop of an unknown slot",
        lambda epoch: plan_of(epoch, drops=[pb.Drop(slot=2**31, request_id=1)]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "an extend of an unknown slot",
        lambda epoch: plan_of(epoch, extends=[pb.Extend(slot=99, request_id=1)]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "an admit to an unknown slot",
        lambda epoch: plan_of(epoch, admits=[admit(slot=99)]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    ("two admits to a slot", lambda epoch: plan_of(epoch, admits=[admit(), admit()]), grpc.StatusCode.INVALID_ARGUMENT),
    (
        "an admit without tokens",
        lambda epoch: plan_of(epoch, admits=[admit(prompt=[])]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "a token that is none",
        lambda epoch: plan_of(epoch, admits=[admit(prompt=[2**32 - 1])]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "an unknown block",
        lambda epoch: plan_of(epoch, admits=[admit(num_blocks=100_000)]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "bytes that are no ids",
        lambda epoch: plan_of(epoch, extends=[pb.Extend(block_ids=[b"abc"])]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "more than 64 MiB",
        lambda epoch: plan_of(epoch, admits=[pb.Admit(prompt_ids=bytes(65 << 20))]),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
]


def plan_of(epoch: int, **parts: Any) -> pb.ToShard:
    return pb.ToShard(epoch=epoch, plan=pb.Plan(number=1, **parts))


@pytest.mark.parametrize(("message", "code"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_hostile_message_ends_its_stream_with_a_status_and_the_shard_lives(
    tmp_path: Path, message: Callable[[int], pb.ToShard], code: grpc.StatusCode
) -> None:
    with serve(tmp_path) as served:
        with connect(served) as stream:
            stream.send_as_it_is(message(stream.epoch))
            assert stream.end_code() is code
        again = reconnect(served)
        try:
            again.send(pb.Plan(number=1, admits=[admit()]))
            assert again.tokens(4) == greedy(PROMPT, 4)
        finally:
            again.close()


def test_a_second_drop_of_a_request_changes_nothing(tmp_path: Path) -> None:
    drop = pb.Drop(slot=0, request_id=7)
    with serve(tmp_path) as served, connect(served) as stream:
        stream.send(pb.Plan(number=1, admits=[admit(max_new=90)]))
        stream.send(pb.Plan(number=2, drops=[drop, drop]))
        stream.send(pb.Plan(number=3, drops=[drop]))
        stream.send(pb.Plan(number=4, admits=[admit(slot=1, prompt=[2, 4])]))
        result = stream.next("result").result
        while result.plan_applied < 4:
            result = stream.next("result").result
        stream.close()
        stream.close()  # a second cancel of the call
        assert stream.end_code() is grpc.StatusCode.CANCELLED


def test_bytes_that_are_no_grpc_and_calls_that_do_not_exist_change_nothing(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01" + bytes(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        ):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(WAIT_S)
                raw.connect(str(served.socket))
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65_536):
                    pass
        for method, data, code in (
            ("/textmill.v1.Shard/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
            (f"/{pb.DESCRIPTOR.services_by_name['Shard'].full_name}/Info", b"\xff\xff", grpc.StatusCode.INTERNAL),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                served.channel.unary_unary(method)(data, timeout=WAIT_S)
            assert failed.value.code() is code
        with connect(served) as stream:
            stream.send(pb.Plan(number=1, admits=[admit()]))
            assert stream.tokens(4) == greedy(PROMPT, 4)


def test_only_rank_0_has_a_stream(tmp_path: Path) -> None:
    served = Served(tmp_path, facts=replace(FACTS, rank=1, world_size=2), gate=None, lease_s=60.0)
    try:
        served.service.set_loaded(LoadedShard(facts=served.facts, engine=None))
        assert served.stub.Info(pb.InfoRequest(), timeout=WAIT_S).rank == 1
        with pytest.raises(grpc.RpcError) as refused:
            next(served.stub.Run(iter([])))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    finally:
        served.channel.close()
        served.server.stop(0).wait(WAIT_S)


def test_when_the_shard_stops_the_stream_ends_as_unavailable(tmp_path: Path) -> None:
    with serve(tmp_path) as served, connect(served) as stream:
        served.engine.stop()
        assert stream.end_code() is grpc.StatusCode.UNAVAILABLE
