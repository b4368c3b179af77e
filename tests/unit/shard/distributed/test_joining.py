"""Ranks join a group of the right kind, with a limit on the time that an exchange may take."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from textmill_shard.distributed import parallel
from textmill_shard.distributed.parallel import TensorParallel


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what groups were made with. Neither a store nor a group is really there, and memory cannot be shared.

    `met` says that the ranks have met before the group was made.
    """
    made: list[dict[str, Any]] = []
    meetings: list[float] = []

    def init(backend: str, **how: Any) -> None:
        made.append({"backend": backend, "met": list(meetings), **how})

    def meet(store: Any, num_rooms: int, *, timeout_s: float, **how: Any) -> None:
        meetings.append(timeout_s)

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(parallel, "open_store", lambda **how: how)
    monkeypatch.setattr(parallel, "open_rooms", meet)
    return made


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "nccl")])
def test_a_group_has_a_limit_of_time_and_the_address_of_rank_0(
    device: str, backend: str, groups: list[dict[str, Any]]
) -> None:
    found = TensorParallel.join(
        rank=1, world_size=4, master_addr="10.0.0.7", master_port=123, device=device, timeout_s=7.0
    )
    assert (found.rank, found.world_size, found.room, found.entry_room) == (1, 4, None, None)
    (group,) = groups
    assert (group["backend"], group["rank"], group["world_size"]) == (backend, 1, 4)
    assert group["timeout"] == timedelta(seconds=7)
    assert group["store"] == {
        "rank": 1,
        "world_size": 4,
        "master_addr": "10.0.0.7",
        "master_port": 123,
        "timeout": timedelta(seconds=7),
    }


@pytest.mark.parametrize(("device", "told"), [("cpu", None), ("cuda:1", torch.device("cuda", 1))])
def test_nccl_is_set_up_on_the_device_behind_a_meeting_with_a_limit(
    device: str, told: torch.device | None, groups: list[dict[str, Any]]
) -> None:
    """With a device the set-up of NCCL happens here, and has no limit of its own for a rank that does not come."""
    TensorParallel.join(rank=1, world_size=4, master_addr="10.0.0.7", master_port=123, device=device, timeout_s=7.0)
    assert groups[0]["device_id"] == told
    assert groups[0]["met"] == [7.0]


def test_an_exchange_ends_after_ten_minutes_unless_told_otherwise(groups: list[dict[str, Any]]) -> None:
    TensorParallel.join(rank=0, world_size=2, master_addr="127.0.0.1", master_port=1, device="cuda:0")
    assert groups[0]["timeout"] == timedelta(minutes=10)


def test_ranks_on_gpus_share_memory_for_messages_alone(
    groups: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "open_rooms", lambda store, num_rooms, **how: ("messages", "tensors"))
    joined = {
        device: TensorParallel.join(rank=0, world_size=2, master_addr="127.0.0.1", master_port=1, device=device)
        for device in ("cpu", "cuda:0")
    }
    assert (joined["cpu"].entry_room, joined["cpu"].room) == ("messages", "tensors")
    assert (joined["cuda:0"].entry_room, joined["cuda:0"].room) == ("messages", None)


def test_a_rank_alone_joins_nothing(groups: list[dict[str, Any]]) -> None:
    found = TensorParallel.join(rank=0, world_size=1, master_addr="127.0.0.1", master_port=1, device="cuda:0")
    assert found == TensorParallel()
    assert groups == []
