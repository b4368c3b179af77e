"""`textmill-shard serve` as processes: one and two ranks give equal tokens, and ends are clean and give a reason."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import grpc
import numpy as np
import pytest
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc
from textmill_shard.errors import BAD_FILES

from tests.fakes.processes import free_port
from tests.fakes.tiny_models import VOCAB_SIZE, make_tiny_llama

START_S = 90.0
WAIT_S = 30.0

# Without these options the channel waits many seconds between its tries while the shard has no socket yet.
QUICK_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


class Rank:
    """One shard process and its log."""

    def __init__(self, folder: Path, sockets: Path, *, rank: int, world_size: int, port: int) -> None:
        self.socket = sockets / f"shard-{rank}.sock"
        self._log = sockets / f"shard-{rank}.log"
        command = [sys.executable, "-m", "textmill_shard", "serve"]
        command += ["--model-dir", str(folder), "--uds-path", str(self.socket), "--dtype", "float32"]
        command += ["--rank", str(rank), "--world-size", str(world_size), "--master-port", str(port)]
        command += ["--kv-cache-bytes", "2000000", "--max-step-tokens", "64", "--num-slots", "8"]
        command += ["--num-threads", "1"]
        with self._log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )

    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        with grpc.insecure_channel(f"unix:{self.socket}", options=QUICK_RECONNECT) as channel:
            stub = shard_pb2_grpc.ShardStub(channel)
            while True:
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < deadline_s, self.log()
                try:
                    report = stub.Health(pb.HealthRequest(), timeout=1.0, wait_for_ready=True)
                except grpc.RpcError:
                    continue
                if report.state == pb.SHARD_STATE_READY:
                    return
                time.sleep(0.05)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)


@contextmanager
def ranks(folder: Path, sockets: Path, world_size: int) -> Iterator[list[Rank]]:
    port = free_port()
    started = [Rank(folder, sockets, rank=rank, world_size=world_size, port=port) for rank in range(world_size)]
    try:
        for rank in started:
            rank.wait_ready()
        yield started
    finally:
        for rank in started:
            rank.end()


def pack(values: Sequence[int]) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


def make_admit(slot: int, prompt: Sequence[int], *, prompt_logprobs_from: int | None = None) -> pb.Admit:
    is_sampled = slot % 2 == 1
    return pb.Admit(
        request_id=10 + slot,
        slot=slot,
        prompt_ids=pack(prompt),
        block_ids=[pack(range(slot * 8, slot * 8 + 8))],
        max_new_tokens=10 + slot,
        ignore_eos=True,
        prompt_logprobs_from=prompt_logprobs_from,
        sampling=pb.Sampling(
            do_sample=is_sampled, seed=slot, temperature=1.0, top_p=0.9, typical_p=1.0, repetition_penalty=1.2
        ),
    )


def run_requests(rank0: Rank) -> tuple[dict[int, list[int]], list[float]]:
    """Run four requests in chunks, with a drop and a late arrival.

    Returns the tokens by slot, and the prompt log-probabilities of slot 2.
    """
    random = np.random.default_rng(5)
    prompts = [random.integers(0, VOCAB_SIZE, length).tolist() for length in (3, 30, 50, 7, 20)]
    outbox: SimpleQueue[pb.ToShard | None] = SimpleQueue()
    tokens: dict[int, list[int]] = {}
    rated: list[float] = []
    finished: set[int] = set()
    with grpc.insecure_channel(f"unix:{rank0.socket}") as channel:
        call = shard_pb2_grpc.ShardStub(channel).Run(iter(outbox.get, None))
        epoch = next(call).epoch
        budget = pb.Budget(max_step_tokens=40, max_prefill_tokens=30, max_chunk_tokens=16)
        admits = [
            make_admit(slot, prompts[slot], prompt_logprobs_from=1 if slot == 2 else None) for slot in (0, 1, 2, 3)
        ]
        outbox.put(pb.ToShard(epoch=epoch, plan=pb.Plan(number=1, admits=admits, budget=budget)))
        drop = pb.Drop(slot=3, request_id=13)
        outbox.put(pb.ToShard(epoch=epoch, plan=pb.Plan(number=2, drops=[drop], admits=[make_admit(4, prompts[4])])))
        for message in call:
            result = message.result
            slots = np.frombuffer(result.slots, dtype="<u4").tolist()
            for slot, token in zip(slots, np.frombuffer(result.tokens, dtype="<u4").tolist(), strict=True):
                tokens.setdefault(slot, []).append(token)
            finished |= {slot for slot, flags in zip(slots, result.flags, strict=True) if flags & 1}
            for piece in result.prompt_logprobs:
                rated += np.frombuffer(piece.logprobs, dtype="<f4").tolist()
            if finished == {0, 1, 2, 4}:
                break
        call.cancel()
        outbox.put(None)
    tokens.pop(3, None)  # dropped after one or two steps
    return tokens, rated


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rank]:
    with ranks(folder, tmp_path_factory.mktemp("alone"), 1) as (rank,):
        yield rank


@pytest.fixture(scope="module")
def pair(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Rank]]:
    with ranks(folder, tmp_path_factory.mktemp("pair"), 2) as started:
        yield started


@pytest.mark.slow  # three processes import torch and load a model
def test_rule_24_two_ranks_give_the_tokens_of_one(alone: Rank, pair: list[Rank]) -> None:
    expected_tokens, expected_rated = run_requests(alone)
    assert {slot: len(found) for slot, found in expected_tokens.items()} == {0: 10, 1: 11, 2: 12, 4: 14}
    for _ in range(2):  # the second run is a second epoch
        tokens, rated = run_requests_when_free(pair[0])
        assert tokens == expected_tokens
        assert rated == pytest.approx(expected_rated, abs=1e-4)  # in float32, with sums in another order


def run_requests_when_free(rank0: Rank) -> tuple[dict[int, list[int]], list[float]]:
    """Run the requests, and try again while the shard still holds the stream before."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            return run_requests(rank0)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION or time.monotonic() > deadline_s:
                raise


# The tests below end processes, also those of the test above, which comes first for that reason.


def assert_death_ends_the_other(started: list[Rank], victim: int) -> None:
    survivor = started[1 - victim]
    started[victim].process.kill()
    assert survivor.process.wait(WAIT_S) == 1
    last_line = survivor.log().strip().splitlines()[-1]
    assert f"rank {1 - victim} of 2 ends" in last_line
    assert not survivor.socket.exists()


def test_rule_24_the_death_of_rank_0_ends_rank_1_with_a_reason(pair: list[Rank]) -> None:
    assert_death_ends_the_other(pair, victim=0)


@pytest.mark.slow  # two processes import torch and load a model
def test_rule_24_the_death_of_rank_1_ends_rank_0_with_a_reason(folder: Path, tmp_path: Path) -> None:
    with ranks(folder, tmp_path, 2) as started:
        assert_death_ends_the_other(started, victim=1)


def assert_ends_cleanly(rank: Rank, number: signal.Signals) -> None:
    rank.process.send_signal(number)
    assert rank.process.wait(WAIT_S) == 0, rank.log()
    assert not rank.socket.exists()
    assert "leaked" not in rank.log()


def test_sigterm_ends_the_shard_cleanly(alone: Rank) -> None:
    assert_ends_cleanly(alone, signal.SIGTERM)


def test_sigint_ends_the_shard_cleanly(folder: Path, tmp_path: Path) -> None:
    with ranks(folder, tmp_path, 1) as (rank,):
        assert_ends_cleanly(rank, signal.SIGINT)


def test_a_folder_without_a_model_ends_with_the_code_of_bad_files_and_the_reason(tmp_path: Path) -> None:
    rank = Rank(tmp_path, tmp_path, rank=0, world_size=1, port=1)
    try:
        assert rank.process.wait(START_S) == BAD_FILES
        assert str(tmp_path) in rank.log().strip().splitlines()[-1]
    finally:
        rank.end()
