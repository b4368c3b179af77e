"""Decides on which device a rank computes."""

import torch

# Of the device, in errors of Triton's launcher and of CUDA's libraries, for which torch has no class.
_WORDS_OF_DEVICE = ("triton error [cuda]", "cublas_status_execution_failed", "cudnn_status_execution_failed")


class DeviceError(Exception):
    """The device that was asked for does not exist. The message says what to try."""


def pick_device(asked: str, *, number: int, num_shards: int) -> str:
    """Return `cpu` or `cuda:N` for what `--device` says, and make a CUDA device the calling thread's own.

    `number` is that of this process among the `num_shards` of this machine: local rank r of replica i has the number
    i * local world size + r. `auto` is `cuda` where torch sees a GPU, and else `cpu`. `cuda` is the GPU of that number,
    and `cuda:N` is GPU N. The ranks of one machine decide alike, because all of them see its GPUs. Raises DeviceError.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    num_seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ":" in asked:
        index, num_wanted = int(asked.partition(":")[2]), int(asked.partition(":")[2]) + 1
    else:
        index, num_wanted = number, num_shards
    if num_seen < num_wanted:
        raise DeviceError(
            f"--device {asked} with {num_shards} shard(s) needs {num_wanted} CUDA device(s), torch sees {num_seen}"
            f"{f' ({why_no_gpu()})' if num_seen == 0 else ''}: "
            "fewer shards (--num-shard, --num-replicas), more devices (CUDA_VISIBLE_DEVICES), or --device cpu"
        )
    device = f"cuda:{index}"
    claim_device(device)
    # NVIDIA's images of torch let a product of float32 numbers round them to 11 bits, which keep no position above
    # 2,048: the tables of rotary positions are such products.
    torch.set_float32_matmul_precision("highest")
    return device


def why_no_gpu() -> str:
    """Return torch's own words for why it sees no GPU, such as a driver that is older than torch's build asks for."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0].partition(". ")[0]  # behind it: where to load drivers
    return "for a reason that torch does not tell"


def is_device_gone(error: BaseException) -> bool:
    """Whether an exception says that the device computes no more, for any request.

    A later call tells of work that fails on a GPU, whichever that is: an operation of torch, the launch of a kernel
    of Triton, or a product of a library. Memory that has run out leaves a device that goes on.
    """
    if isinstance(error, torch.AcceleratorError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "out of memory" not in text and any(w in text for w in _WORDS_OF_DEVICE)


def claim_device(device: str) -> None:
    """Make a CUDA device the current one of the calling thread, of which each thread has its own.

    NCCL, allocations without a device, Triton's launches and events use the current device.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
