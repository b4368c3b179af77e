"""Adapters are loaded and unloaded beside running requests, and each row computes with the adapter of its request."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from textmill_shard.engine.adapter_desk import AdapterHeld, UnknownAdapter
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.session import EndReason
from textmill_shard.model.adapter import AdapterRefused, AdapterTooLarge, PreparedAdapter
from textmill_shard.slots.plan import Budget

from tests.fakes.formula_adapters import digest_of, read_shift
from tests.fakes.step_harness import FACTS, WAIT_S, Shard, admit, drop, greedy

ROOM = replace(FACTS, adapter_bytes=100)  # of `shift-1` and `shift-9`, or of `shift-10`


@pytest.fixture
def shard() -> Iterator[Shard]:
    with Shard(facts=ROOM) as shard:
        yield shard


def load(shard: Shard, name: str, expected: bytes = b"") -> bytes:
    return shard.engine.load_adapter(f"/adapters/{name}", expected_digest=expected).result(WAIT_S).digest


def test_rows_of_adapters_and_of_the_base_model_run_beside_each_other(shard: Shard) -> None:
    first, second = load(shard, "shift-1"), load(shard, "shift-2")
    shard.send(
        admits=[
            admit(0, [1, 2], adapter_digest=second),
            admit(1, [3] * 9),
            admit(2, [5, 6, 7], adapter_digest=first),
            admit(3, [1, 2], adapter_digest=first),
        ],
        budget=Budget(max_step_tokens=8, max_prefill_tokens=6, max_chunk_tokens=3),
    )
    tokens = shard.run_to_end(0, 1, 2, 3)
    assert tokens == {
        0: greedy([1, 2], 4, shift=2),
        1: greedy([3] * 9, 4),
        2: greedy([5, 6, 7], 4, shift=1),
        3: greedy([1, 2], 4, shift=1),
    }


def test_a_step_without_adapter_rows_has_no_tensor_of_adapters(shard: Shard) -> None:
    digest = load(shard, "shift-1")
    shard.send(admits=[admit(0, [1], adapter_digest=digest, max_new=1), admit(1, [2], max_new=3)])
    shard.run_to_end(0, 1)
    found = [None if batch.adapters_R is None else batch.adapters_R.tolist() for batch in shard.runner.batches]
    assert found == [[1, 0], None, None]


def test_rule_23_an_admit_names_loaded_adapters_alone(shard: Shard) -> None:
    load(shard, "shift-1")
    shard.send(admits=[admit(0, [1], adapter_digest=digest_of(2))])
    rejection = shard.rejection()
    assert (rejection.slot, rejection.field) == (0, "admits.adapter_digest")
    assert digest_of(2).hex() in rejection.message


def test_rule_23_a_held_adapter_is_not_unloaded() -> None:
    with Shard(gate=threading.Semaphore(0), facts=ROOM) as shard:
        digest = load(shard, "shift-1")
        shard.send(admits=[admit(0, [1], adapter_digest=digest, max_new=9)])
        shard.step()
        unload = shard.engine.unload_adapter(digest)
        assert shard.gate is not None
        shard.gate.release(100)
        assert isinstance(unload.exception(WAIT_S), AdapterHeld)
        assert shard.run_to_end(0)[0] == greedy([1], 9, shift=1)
        shard.engine.unload_adapter(digest).result(WAIT_S)
        assert isinstance(shard.engine.unload_adapter(digest).exception(WAIT_S), UnknownAdapter)
        assert shard.executor.adapter_digests == ()
        shard.send(admits=[admit(0, [1], adapter_digest=digest)])
        assert shard.rejection().field == "admits.adapter_digest"


def test_a_dropped_request_gives_its_adapter_back() -> None:
    with Shard(gate=threading.Semaphore(0), facts=ROOM) as shard:
        digest = load(shard, "shift-0")
        shard.send(admits=[admit(0, [1], adapter_digest=digest)])
        shard.step()
        shard.send(drops=[drop(0)])
        shard.step()
        shard.engine.unload_adapter(digest).result(WAIT_S)


def test_an_adapter_that_does_not_fit_is_refused_with_both_numbers(shard: Shard) -> None:
    held = load(shard, "shift-4")
    with pytest.raises(AdapterTooLarge, match="takes 70 bytes, and 60 of the 100 bytes that --lora-memory-bytes"):
        load(shard, "shift-7")
    load(shard, "shift-6")
    shard.engine.unload_adapter(held).result(WAIT_S)
    load(shard, "shift-3")
    assert shard.executor.adapter_digests == (digest_of(6), digest_of(3))
    assert shard.runner.adapters.shifts == {0: 0, 1: 3, 2: 6}


def test_two_folders_with_one_content_share_memory(shard: Shard) -> None:
    for folder in ("/a/shift-6", "/b/shift-6"):
        answer = shard.engine.load_adapter(folder, expected_digest=b"").result(WAIT_S)
        assert (answer.digest, answer.bytes_by_rank, answer.max_rank) == (digest_of(6), (60,), 8)
    assert shard.runner.adapters.shifts == {0: 0, 1: 6}


def test_an_adapter_that_is_loaded_again_must_be_what_it_was(shard: Shard) -> None:
    with pytest.raises(AdapterRefused, match=f"another adapter than before.*{digest_of(5).hex()} was expected"):
        load(shard, "shift-1", expected=digest_of(5))
    assert shard.executor.adapter_digests == ()
    assert load(shard, "shift-1", expected=digest_of(1)) == digest_of(1)


@pytest.mark.parametrize(("name", "reason"), [("bad", "the folder is bad"), ("crash", "ZeroDivisionError: a bug")])
def test_a_bad_folder_disturbs_nobody(name: str, reason: str) -> None:
    with Shard(gate=threading.Semaphore(0), facts=ROOM) as shard:
        shard.send(admits=[admit(0, [1, 2], max_new=3)])
        shard.step()
        answer = shard.engine.load_adapter(name, expected_digest=b"")
        assert shard.gate is not None
        shard.gate.release(100)
        with pytest.raises(AdapterRefused, match=reason):
            answer.result(WAIT_S)
        assert shard.run_to_end(0)[0] == greedy([1, 2], 3)
        assert load(shard, "shift-1") == digest_of(1)


def test_rule_21_adapters_outlive_a_lost_stream(shard: Shard) -> None:
    """The request comes back with the tokens that it has, and goes on with its adapter."""
    digest = load(shard, "shift-2")
    shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
    shard.connect()
    assert shard.executor.adapter_digests == (digest,)
    whole = greedy([1, 2], 6, shift=2)
    shard.send(admits=[admit(0, [1, 2], output=whole[:3], max_new=6, adapter_digest=digest)])
    assert shard.run_to_end(0)[0] == whole[3:]


def test_adapters_are_read_one_after_the_other_and_a_stop_cancels_those_that_wait() -> None:
    may_read, reading = threading.Event(), threading.Event()

    def read(folder: Path) -> PreparedAdapter:
        reading.set()
        assert may_read.wait(WAIT_S)
        return read_shift(folder)

    with Shard(facts=ROOM, reader=AdapterReader(read, SoloGroup())) as shard:
        answers = [shard.engine.load_adapter(f"shift-{shift}", expected_digest=b"") for shift in (1, 2)]
        assert reading.wait(WAIT_S)
        # The step loop goes on while a thread reads.
        shard.send(admits=[admit(0, [4], max_new=3)])
        assert shard.run_to_end(0)[0] == greedy([4], 3)
        assert not any(answer.done() for answer in answers)
    for answer in answers:
        with pytest.raises(CancelledError):
            answer.result(WAIT_S)
    may_read.set()


def test_an_adapter_is_read_on_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read compiles and launches kernels, which look for the current device of their thread."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda index: seen.append((str(index), threading.current_thread().name))
    )
    devices_at_read: list[int] = []

    def read(folder: Path) -> PreparedAdapter:
        devices_at_read.append(len(seen))
        return read_shift(folder)

    with Shard(facts=ROOM, reader=AdapterReader(read, SoloGroup(), device="cuda:2")) as shard:
        shard.engine.load_adapter("shift-1", expected_digest=b"").result(WAIT_S)
    assert seen == [("cuda:2", "adapter-reader")]
    assert devices_at_read == [1]
