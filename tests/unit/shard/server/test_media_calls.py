"""The calls `HasMedia` and `Put` of a real server, with a model of images and with a model of text."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_put import MediaRefused
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.server.server import LoadedShard, ShardService, start_server, take_item

from tests.fakes.step_engine import make_engine
from tests.fakes.step_harness import FACTS, PrefixRunner
from tests.fakes.step_media import MAX_BYTES, SHARD_FACTS, FormulaTower, media_desk

DIGEST = b"d" * 16


def header(num_pixels: int = 4, **changes: object) -> pb.MediaPart:
    tensor = pb.TensorHeader(name="pixels", dtype="float32", shape=[num_pixels])
    fields = {"digest": DIGEST, "kind": "formula", "tensors": [tensor], "num_rows": num_pixels, **changes}
    return pb.MediaPart(header=pb.MediaHeader(**fields))  # type: ignore[arg-type]


def data(num_bytes: int) -> pb.MediaPart:
    return pb.MediaPart(data=bytes(num_bytes))


class Served:
    """A server whose step loop never runs."""

    def __init__(self, folder: Path, desk: MediaDesk | None) -> None:
        facts = FACTS if desk is None else SHARD_FACTS
        status = ShardStatus()
        engine = make_engine(StepExecutor(runner=PrefixRunner(), facts=facts), facts, status=status, media=desk)
        service = ShardService(status)
        self.server = start_server(service, folder / "shard.sock")
        service.set_loaded(LoadedShard(facts=facts, engine=engine))
        self.channel = grpc.insecure_channel(f"unix:{folder / 'shard.sock'}")
        self.stub = shard_pb2_grpc.ShardStub(self.channel)

    def put(self, *parts: pb.MediaPart) -> bool:
        return self.stub.Put(iter(parts), timeout=10).was_kept

    def refusal(self, *parts: pb.MediaPart) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.put(*parts)
        return caught.value.code(), caught.value.details()


@pytest.fixture
def desk() -> Iterator[MediaDesk]:
    desk = media_desk(FormulaTower())
    yield desk
    desk.close()


@pytest.fixture
def served(tmp_path: Path, desk: MediaDesk) -> Iterator[Served]:
    served = Served(tmp_path, desk)
    yield served
    served.channel.close()
    served.server.stop(0).wait(5)


def test_an_item_comes_in_pieces_and_is_known_from_then_on(served: Served, desk: MediaDesk) -> None:
    assert served.stub.HasMedia(pb.MediaDigests(digests=[DIGEST]), timeout=10).digests == []
    pixels = torch.tensor([1.0, 2.0, 3.0, 4.0])
    values = pixels.numpy().astype("<f4").tobytes()
    pieces = [pb.MediaPart(data=values[start : start + 5]) for start in range(0, 16, 5)]
    assert not served.put(header(), *pieces)
    assert served.stub.HasMedia(pb.MediaDigests(digests=[b"x" * 16, DIGEST]), timeout=10).digests == [DIGEST]
    tensors = desk.store.tensors_of(DIGEST)
    assert tensors is not None
    assert torch.equal(tensors["pixels"], pixels)
    assert served.put(header(), data(16))  # once more


def test_an_item_of_several_parts_of_one_mebibyte_is_kept_whole(tmp_path: Path) -> None:
    """The router sends parts of 1 MiB, the last one shorter (`unit/router/engine/test_media_calls.py`)."""
    num_pixels = (5 << 20) // 8  # 2.5 MiB
    desk = media_desk(FormulaTower(), max_bytes=num_pixels * 32)
    served = Served(tmp_path, desk)
    try:
        pixels = torch.arange(num_pixels, dtype=torch.float32)
        values = pixels.numpy().astype("<f4").tobytes()
        parts = [pb.MediaPart(data=values[start : start + (1 << 20)]) for start in range(0, len(values), 1 << 20)]
        assert [len(part.data) for part in parts] == [1 << 20, 1 << 20, 1 << 19]
        assert not served.put(header(num_pixels), *parts)
        tensors = desk.store.tensors_of(DIGEST)
        assert tensors is not None
        assert torch.equal(tensors["pixels"], pixels)
    finally:
        served.channel.close()
        served.server.stop(0).wait(5)
        desk.close()


def test_what_is_no_item_is_refused_and_leaves_nothing_behind(served: Served, desk: MediaDesk) -> None:
    for parts, message in (
        ((), "the first message of an item is its header"),
        ((data(16),), "the first message of an item is its header"),
        ((header(kind="llava"), data(16)), "kinds of items are formula, got 'llava'"),
        ((header(), data(17)), "the tensors have 16 bytes, got 17 and more"),
        ((header(), data(15)), "the tensors have 16 bytes, got 15"),
        ((header(), header()), "an item has one header, and then bytes"),
        ((header(MAX_BYTES // 8 + 1),), f"an item takes at most {MAX_BYTES // 2} bytes"),
    ):
        code, details = served.refusal(*parts)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message in details
    desk.store.reserve(MAX_BYTES)


def test_items_that_are_needed_leave_no_room_for_others(served: Served, desk: MediaDesk) -> None:
    desk.store.reserve(MAX_BYTES)
    code, details = served.refusal(header(), data(16))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "(--media-cache-bytes)" in details


def test_a_call_that_breaks_off_gives_its_room_back(desk: MediaDesk) -> None:
    def parts() -> Iterator[pb.MediaPart]:
        yield header()
        yield data(3)
        raise ConnectionError("the router has gone")

    with pytest.raises(ConnectionError):
        take_item(parts(), desk)
    with pytest.raises(MediaRefused):
        take_item(iter([header(), data(3)]), desk)
    desk.store.reserve(MAX_BYTES)


def test_a_model_of_text_takes_no_items(tmp_path: Path) -> None:
    served = Served(tmp_path, None)
    code, details = served.refusal(header(), data(16))
    assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, "the model of this shard takes text only")
    served.channel.close()
    served.server.stop(0).wait(5)
