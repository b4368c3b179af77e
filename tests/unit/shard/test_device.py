"""The device of a rank, with a torch whose GPUs are made up. None of these tests has run on a GPU."""

import pytest
import torch
from textmill_shard.device import DeviceError, is_device_gone, pick_device, why_no_gpu


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the devices that the process has made its own."""
    devices: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def see(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)


@pytest.mark.parametrize(
    ("asked", "num_gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:1"),
        ("auto", 8, "cuda:1"),
        ("cpu", 8, "cpu"),
        ("cuda", 2, "cuda:1"),
        ("cuda:0", 2, "cuda:0"),
        ("cuda:7", 8, "cuda:7"),
    ],
)
def test_device_of_the_second_of_two_ranks(
    asked: str, num_gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch, chosen: list[str]
) -> None:
    see(monkeypatch, num_gpus)
    assert pick_device(asked, number=1, num_shards=2) == expected
    assert chosen == ([] if expected == "cpu" else [expected])


def test_products_of_float32_numbers_keep_their_bits(monkeypatch: pytest.MonkeyPatch, chosen: list[str]) -> None:
    """The environment of NVIDIA's images asks for less, by which rotary positions would be wrong."""
    see(monkeypatch, 1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        pick_device("cuda", number=0, num_shards=1)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("asked", "num_gpus", "message"),
    [
        ("auto", 1, r"--device auto with 2 shard\(s\) needs 2 CUDA .* sees 1: .*--num-shard.*--device cpu"),
        ("cuda", 0, "--device cuda .* torch sees 0"),
        ("cuda", 1, "needs 2 .* torch sees 1"),
        ("cuda:2", 2, "--device cuda:2 .* needs 3 .* torch sees 2"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])  # rank 0 must not start where rank 1 cannot
def test_a_device_that_is_not_there_ends_the_start(
    asked: str, num_gpus: int, message: str, rank: int, monkeypatch: pytest.MonkeyPatch, chosen: list[str]
) -> None:
    see(monkeypatch, num_gpus)
    with pytest.raises(DeviceError, match=message):
        pick_device(asked, number=rank, num_shards=2)
    assert chosen == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError(
                "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
                "downloading and installing a new version"
            ),
            "The NVIDIA driver on your system is too old (found version 11040)",
        ),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
    ],
)
def test_a_machine_without_a_gpu_says_what_torch_says(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise error

    see(monkeypatch, 0)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert why_no_gpu() == expected
    with pytest.raises(DeviceError) as refusal:
        pick_device("cuda", number=0, num_shards=1)
    assert f"torch sees 0 ({expected}): fewer shards" in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "is_gone"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),  # Triton's launcher
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("Triton Error [CUDA]"), False),
    ],
)
def test_a_device_is_gone_by_the_words_of_each_library_that_tells_of_it(error: Exception, *, is_gone: bool) -> None:
    assert is_device_gone(error) is is_gone
