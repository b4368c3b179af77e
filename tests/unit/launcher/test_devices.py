"""The number of shards that `--sharded`, `--num-shard` and the visible devices give."""

import pytest
from textmill_launcher.devices import count_visible, num_shards
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


@pytest.mark.parametrize(("devices", "expected"), [(None, None), ("", 1), (" , ", 1), ("3", 1), ("GPU-a,GPU-b", 2)])
def test_devices_named_by_the_environment(devices: str | None, expected: int | None) -> None:
    assert count_visible(devices, count_all=lambda: 8) == expected


@pytest.mark.parametrize("word", ["all", "void"])
def test_all_devices_are_counted_by_the_driver(word: str) -> None:
    assert count(num_driver_devices=8, NVIDIA_VISIBLE_DEVICES=word) == 8


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
