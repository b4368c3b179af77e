"""The number of shards that `--sharded`, `--num-shard` and the visible devices give."""

from pathlib import Path

import pytest
from textmill_launcher.devices import DriverSilent, count_driver_devices, count_visible, num_shards
from textmill_launcher.errors import ConflictingSettings
from textmill_launcher.settings import load_settings


def count(argv: str = "", num_driver_devices: int = 0, **environ: str) -> int:
    return num_shards(load_settings(argv.split(), environ), lambda: num_driver_devices)


@pytest.mark.parametrize(
    ("argv", "devices", "expected"),
    [
        ("--sharded true", "0,1,2", 3),
        ("--sharded true --num-shard 2", "0,1,2", 2),
        ("--sharded false", "0,1,2", 1),
        ("--sharded false --num-shard 3", "0,1", 3),
        ("", "0,1", 2),
        ("", "", 1),
        ("--num-shard 4", "0,1", 4),
        ("--device cuda", "0,1", 2),
        ("--device cpu", "0,1", 1),
        ("--device cpu --num-shard 2", "0,1,2", 2),
    ],
)
def test_number_of_shards(argv: str, devices: str, expected: int) -> None:
    assert count(argv, CUDA_VISIBLE_DEVICES=devices) == expected


def test_without_a_device_list_there_is_one_shard() -> None:
    assert count(num_driver_devices=8) == 1


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (None, None),
        ("", 1),
        (" , ", 1),
        ("3", 1),
        ("GPU-a,GPU-b", 2),
        ("GPU-a, 1", 2),
        ("-1", 1),
        ("0,1,-1,2", 2),  # CUDA reads no further
        ("MIG-a,MIG-b", 1),  # CUDA shows one part of a GPU to a process
        ("MIG-GPU-a/1/0,MIG-GPU-a/2/0", 1),
    ],
)
def test_devices_named_by_the_environment(devices: str | None, expected: int | None) -> None:
    assert count_visible(devices, count_all=lambda: 8) == expected


@pytest.mark.parametrize("word", ["all", "void"])
def test_all_devices_are_counted_by_the_driver(word: str) -> None:
    assert count(num_driver_devices=8, NVIDIA_VISIBLE_DEVICES=word) == 8


def test_a_device_that_is_named_twice_is_refused_because_cuda_shows_none_then() -> None:
    with pytest.raises(ConflictingSettings, match="'1,0, 1', names 1 twice"):
        count_visible("1,0, 1", count_all=lambda: 8)
    assert count_visible("0,-1,0", count_all=lambda: 8) == 1


def silent() -> int:
    raise DriverSilent("cannot count the devices with nvidia-smi (no such file): give --num-shard")


@pytest.mark.parametrize(("argv", "expected"), [("", 1), ("--num-shard 2 --device cuda", 2), ("--sharded false", 1)])
def test_a_silent_driver_is_no_fault_where_nothing_hangs_on_its_answer(argv: str, expected: int) -> None:
    settings = load_settings(argv.split(), {"NVIDIA_VISIBLE_DEVICES": "all"})
    assert num_shards(settings, silent) == expected


@pytest.mark.parametrize("argv", ["--device cuda", "--sharded true --device cuda", "--sharded true"])
def test_a_silent_driver_is_a_fault_where_its_answer_is_needed(argv: str) -> None:
    with pytest.raises(ConflictingSettings, match="give --num-shard"):
        num_shards(load_settings(argv.split(), {"NVIDIA_VISIBLE_DEVICES": "all"}), silent)


LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-6e1a22c4)
"""


def test_the_driver_counts_gpus_and_not_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DriverSilent, match=r"nvidia-smi.*give --num-shard"):
        count_driver_devices()
    program.write_text(f"#!/bin/sh\n[ $1 = -L ] && echo '{LISTING}'\n")
    program.chmod(0o755)
    assert count_driver_devices() == 2


def test_cuda_list_wins_over_the_container_list() -> None:
    assert count(CUDA_VISIBLE_DEVICES="0", NVIDIA_VISIBLE_DEVICES="0,1") == 1


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        ("--sharded true", {}),
        ("--sharded true", {"CUDA_VISIBLE_DEVICES": "0"}),
        ("--sharded true --num-shard 1", {"CUDA_VISIBLE_DEVICES": "0,1"}),
        ("--sharded true --device cpu", {"CUDA_VISIBLE_DEVICES": "0,1"}),
    ],
)
def test_sharded_needs_two(argv: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConflictingSettings, match="--sharded true needs"):
        count(argv, **environ)
