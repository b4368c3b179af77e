"""What rank 0 says through shared memory reaches each follower in order: entries, ids and tensors."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from textmill_shard.engine.rank_channel import GlooChannel, RankChannel, RankEntry
from textmill_shard.engine.shared_channel import MessageRoom, SharedChannel
from textmill_shard.native.ranks import RankLost, RankRoom
from textmill_shard.slots.plan import NO_IDS

from tests.fakes.fake_gpu import FakeGpu
from tests.fakes.rooms import by_each, rooms

PLAN = bytes(range(256)) * 60  # longer than a bank
PICTURE = torch.randn(40, 70, generator=torch.Generator().manual_seed(1)).bfloat16()


def talk(room: RankRoom) -> tuple[RankEntry, list[int], list[int], torch.Tensor, torch.Tensor, RankEntry]:
    channel: RankChannel = SharedChannel(room)
    first = RankEntry(step=7, ended_slots=np.array([3, 1]), plans=(b"", PLAN), released_slots=np.array([2]))
    last = RankEntry(step=8, is_stop=True)
    tokens, nothing = np.array([5, 70_000, 2**31 + 5]), torch.empty(0, 4)
    if room.rank == 0:
        picture = PICTURE.clone()
        channel.send(first)
    else:
        picture = torch.zeros_like(PICTURE)
        tokens = np.zeros(3, dtype=np.int64)
        first = channel.receive()
    shared = channel.share_tokens(tokens).tolist()
    none = channel.share_tokens(NO_IDS).tolist()
    channel.share_tensor(picture)
    channel.share_tensor(nothing)
    if room.rank == 0:
        channel.send(last)
    else:
        last = channel.receive()
    return first, shared, none, picture, nothing, last


def test_followers_get_all_that_rank_0_says() -> None:
    with rooms(3) as made:
        for first, tokens, none, picture, nothing, last in by_each(made, talk):
            assert (first.step, first.plans, first.is_stop) == (7, (b"", PLAN), False)
            assert (first.ended_slots.tolist(), first.released_slots.tolist()) == ([3, 1], [2])
            assert tokens == [5, 70_000, 2**31 + 5]
            assert none == []
            assert torch.equal(picture, PICTURE)
            assert nothing.shape == (0, 4)
            assert (last.step, last.is_stop) == (8, True)


def test_a_follower_whose_rank_0_has_gone_does_not_wait_for_ever() -> None:
    with rooms(2) as made:
        made[0].close()
        with pytest.raises(RankLost, match="rank 0 of 2 has ended"):
            SharedChannel(made[1]).receive()


def make_gloo(monkeypatch: pytest.MonkeyPatch) -> RankChannel:
    monkeypatch.setattr(dist, "new_group", lambda **how: how["backend"])
    return GlooChannel()


def make_shared(monkeypatch: pytest.MonkeyPatch) -> RankChannel:
    return SharedChannel(cast(MessageRoom, SimpleNamespace(rank=0)))


@pytest.mark.parametrize("make", [make_gloo, make_shared])
def test_the_ids_of_a_gpu_go_from_device_to_device(
    make: Callable[[pytest.MonkeyPatch], RankChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group of the model is that of NCCL. A group of gloo would bring the ids to the host first."""
    sent: list[tuple[str, int, object]] = []

    def broadcast(tensor: torch.Tensor, *, src: int, group: object = None) -> None:
        sent.append((tensor.device.type, src, group))

    monkeypatch.setattr(dist, "broadcast", broadcast)
    channel = make(monkeypatch)
    with FakeGpu() as gpu:
        channel.share_tensor(torch.zeros(3, dtype=torch.int64, device="cuda"))
    assert sent == [("cuda", 0, None)]
    assert (gpu.counts["copy to the host"], gpu.num_waits) == (0, 0)
