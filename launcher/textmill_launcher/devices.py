"""The number of shards to start."""

import subprocess
from collections.abc import Callable
from itertools import takewhile

from textmill_launcher.errors import ConflictingSettings
from textmill_launcher.settings import Settings


class DriverSilent(ConflictingSettings):
    """The driver of NVIDIA does not say how many devices there are."""


def count_visible(visible_devices: str | None, count_all: Callable[[], int]) -> int | None:
    """Return the number of devices that CUDA shows for the list of the environment, or None when there is no list.

    For `all` and `void` the driver is asked (`count_all`). An empty list counts as one device. CUDA ends a list at a
    negative number, and shows a process one part of a divided GPU (MIG). Raises `ConflictingSettings` for a device that
    the list names twice, because CUDA then shows none.
    """
    if visible_devices is None:
        return None
    if visible_devices.strip() in ("all", "void"):
        return count_all()
    named = [name for part in visible_devices.split(",") if (name := part.strip())]
    shown = list(takewhile(lambda name: not name.startswith("-"), named))
    twice = next((name for number, name in enumerate(shown) if name in shown[:number]), None)
    if twice is not None:
        raise ConflictingSettings(
            f"the list of devices in the environment, {visible_devices!r}, names {twice} twice, for which CUDA shows "
            "no device: name each device once"
        )
    return 1 if any(name.startswith("MIG-") for name in shown) else max(1, len(shown))


def hides_all(visible_devices: str | None) -> bool:
    """Whether CUDA shows no device for the list of the environment, which is empty or begins with a negative number."""
    return visible_devices is not None and visible_devices.strip(" ,")[:1] in ("", "-")


def num_ranks(settings: Settings, count_all: Callable[[], int]) -> int:
    """Return the number of shards of each replica on all nodes. Raises as `num_shards` does."""
    return settings.num_nodes * num_shards(settings, count_all)


def num_shards(settings: Settings, count_all: Callable[[], int]) -> int:
    """Return the number of shards of each replica on this machine, between which visible devices are divided.

    Raises `ConflictingSettings` when `--sharded true` finds fewer than two devices, and as `count_visible` does.
    """
    wanted = settings.num_shard
    if settings.sharded:
        if wanted is None:
            visible = _count_shown(settings, count_all)
            if visible is None or visible <= 1:
                found = (
                    "no device list in CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES"
                    if visible is None
                    else "one device"
                )
                raise ConflictingSettings(f"--sharded true needs two devices or more, found {found}: give --num-shard")
            return max(1, visible // settings.num_replicas)
        if wanted <= 1:
            raise ConflictingSettings(f"--sharded true needs --num-shard of 2 or more, found {wanted}")
        return wanted
    if wanted is not None:
        return wanted
    if settings.sharded is False:
        return 1
    return max(1, (_count_shown(settings, count_all) or 1) // settings.num_replicas)


def _count_shown(settings: Settings, count_all: Callable[[], int]) -> int | None:
    """Return the number of listed devices for the shards, or None without a list or where shards may take the CPU."""
    if settings.device == "cpu":  # the list of GPUs means nothing
        return None
    try:
        return count_visible(settings.visible_devices, count_all)
    except DriverSilent:
        if settings.device == "cuda":
            raise
        return None  # images for GPUs say `all`, also on machines without a GPU


def count_driver_devices(timeout_s: float = 20.0) -> int:
    """Return the number of GPUs that `nvidia-smi -L` lists, without their parts. Raises `DriverSilent`."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise DriverSilent(f"cannot count the devices with nvidia-smi ({error}): give --num-shard") from error
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
