"""A machine whose GPUs do not reach each other, or that has no room for NCCL, is told what to change."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from textmill_shard.distributed import gpu_links
from textmill_shard.distributed.gpu_links import LEAST_SHM_BYTES, link_warnings

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture(autouse=True)
def linked(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Return the pairs of GPUs that do not reach each other, as (from, to)."""
    apart: set[tuple[int, int]] = set()
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: (one, other) not in apart)
    return apart


def give_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(gpu_links.shutil, "disk_usage", lambda path: Usage(2 * free, free, free))


def test_a_machine_with_all_it_needs_gets_no_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_free(monkeypatch, LEAST_SHM_BYTES)
    assert link_warnings(range(4), shared_memory=tmp_path) == []


def test_pairs_without_peer_access_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linked: set[tuple[int, int]]
) -> None:
    give_free(monkeypatch, LEAST_SHM_BYTES)
    linked |= {(4, 6), (7, 5)}  # one direction is enough
    (sentence,) = link_warnings(range(4, 8), shared_memory=tmp_path)
    assert sentence.startswith("GPUs 4 and 6, 5 and 7 do not reach each other's memory (peer access)")
    assert "nvidia-smi topo -m" in sentence


def test_little_shared_memory_is_named_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_free(monkeypatch, 64 * 1024**2)
    (sentence,) = link_warnings([0, 1], shared_memory=tmp_path)
    assert sentence.startswith(f"{tmp_path} has 64 MiB free, and NCCL may need 256 MiB")
    assert "--shm-size" in sentence


def test_no_shared_memory_is_named(tmp_path: Path) -> None:
    (sentence,) = link_warnings([0, 1], shared_memory=tmp_path / "shm")
    assert sentence.endswith("mount it")


def test_one_gpu_needs_neither(tmp_path: Path, linked: set[tuple[int, int]]) -> None:
    assert link_warnings([0], shared_memory=tmp_path / "shm") == []
