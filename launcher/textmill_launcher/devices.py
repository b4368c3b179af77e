"""The number of shards to start."""

import subprocess
from collections.abc import Callable

from textmill_launcher.errors import ConflictingSettings
from textmill_launcher.settings import Settings


def count_visible(visible_devices: str | None, count_all: Callable[[], int]) -> int | None:
    """Return the number of devices in the list of the environment, or None when there is no list.

    For `all` and `void` the driver is asked (`count_all`). An empty list counts as one device.
    """
    if visible_devices is None:
        return None
    if visible_devices.strip() in ("all", "void"):
        return count_all()
    return max(1, len([part for part in visible_devices.split(",") if part.strip()]))


def num_ranks(settings: Settings, count_all: Callable[[], int]) -> int:
    """Return the number of shards of each replica on all nodes. Raises as `num_shards` does."""
    return settings.num_nodes * num_shards(settings, count_all)


def num_shards(settings: Settings, count_all: Callable[[], int]) -> int:
    """Return the number of shards of each replica on this machine, between which visible devices are divided.

    Raises `ConflictingSettings` when `--sharded true` finds fewer than two devices.
    """
    # The list of GPUs means nothing for a shard on the CPU.
    visible = None if settings.device == "cpu" else count_visible(settings.visible_devices, count_all)
    wanted = settings.num_shard
    if settings.sharded:
        if wanted is None:
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
    return max(1, (visible or 1) // settings.num_replicas)


def count_driver_devices(timeout_s: float = 20.0) -> int:
    """Return the number of devices that `nvidia-smi -L` lists. Raises `ConflictingSettings` when the command fails."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConflictingSettings(f"cannot count the devices with nvidia-smi ({error}): give --num-shard") from error
    return sum(1 for line in listing.stdout.splitlines() if "UUID" in line)
