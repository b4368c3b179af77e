"""Arrays of any types reach the device as they are, in one piece, and tensors come back likewise."""

import numpy as np
import pytest
import torch
from textmill_shard.engine.upload import (
    ALIGNMENT_BYTES,
    Upload,
    pack_arrays,
    pack_tensors,
    to_host,
    unpack_arrays,
    unpack_tensors,
)

from tests.fakes.fake_gpu import FakeGpu

ARRAYS = (
    np.array([3, -1, 2**40], dtype=np.int64),
    np.array([], dtype=np.int64),
    np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32),
    np.array([True, False, True]),
    np.array([[7]], dtype=np.int32),
)
TENSORS = (
    torch.tensor([2**40, -5]),
    torch.tensor([True]),
    torch.tensor([0.5, float("nan"), -1.0]),
    torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T,
    torch.tensor([], dtype=torch.bool),
)


def test_on_a_cpu_tensors_share_the_memory_of_the_arrays() -> None:
    upload = Upload(torch.device("cpu"))
    values = np.array([1, 2])
    number = upload.add(values)
    upload.send()
    values[0] = 9
    assert upload.tensor(number).tolist() == [9, 2]
    with pytest.raises(AssertionError, match="the arrays have been sent"):
        upload.add(values)


@pytest.mark.parametrize("num_bytes", [400, 48], ids=["room for all", "room for the first alone"])
def test_arrays_behind_the_numbers_of_a_graph_outlive_the_next_copy(num_bytes: int) -> None:
    memory = torch.zeros(num_bytes, dtype=torch.uint8)
    upload = Upload(torch.device("cpu"))
    numbers = [upload.add(values) for values in ARRAYS]
    first = np.array([5, 6, 7], dtype=np.int32)
    upload.send_behind(first, memory)
    assert memory[:12].view(torch.int32).tolist() == [5, 6, 7]
    Upload(torch.device("cpu")).send_behind(np.full(num_bytes // 4, -1, dtype=np.int32), memory)
    for number, values in zip(numbers, ARRAYS, strict=True):
        assert np.array_equal(upload.tensor(number).numpy(), values)


def test_a_graph_step_is_one_copy_to_the_gpu() -> None:
    gpu = FakeGpu()
    with gpu:
        device = torch.device("cuda:0")
        memory = torch.zeros(1000, dtype=torch.uint8, device=device)
        gpu.counts.clear()
        Upload(device).send_behind(np.array([1, 2]), memory)
        assert gpu.counts == {"copy to the GPU": 1}
        upload = Upload(device)
        number = upload.add(np.array([3, 4]))
        upload.send_behind(np.array([1, 2]), memory)
        assert gpu.counts == {"copy to the GPU": 2, "clone": 1}
        assert upload.tensor(number).device.type == "cuda"
        assert gpu.num_waits == 0


def test_packed_arrays_come_out_as_they_went_in_from_aligned_places() -> None:
    packed = torch.from_numpy(pack_arrays(ARRAYS))
    tensors = unpack_tensors(packed, ARRAYS)
    for tensor, values in zip(tensors, ARRAYS, strict=True):
        assert tensor.numpy().dtype == values.dtype
        assert np.array_equal(tensor.numpy(), values)
        assert (tensor.storage_offset() * tensor.dtype.itemsize) % ALIGNMENT_BYTES == 0


def test_packed_tensors_come_out_as_they_went_in() -> None:
    arrays = unpack_arrays(pack_tensors(TENSORS).numpy(), TENSORS)
    for values, tensor in zip(arrays, TENSORS, strict=True):
        assert torch.equal(torch.from_numpy(values).nan_to_num(7.0), tensor.nan_to_num(7.0))
    assert [values.tolist() for values in to_host(TENSORS[0], TENSORS[1])] == [[2**40, -5], [True]]


def test_a_gpu_gets_one_copy() -> None:
    with FakeGpu() as gpu:
        upload = Upload(torch.device("cuda:0"))
        numbers = [upload.add(values) for values in ARRAYS]
        upload.send()
        shapes = [tuple(upload.tensor(number).shape) for number in numbers]
        Upload(torch.device("cuda:0")).send()  # nothing to send
    assert shapes == [values.shape for values in ARRAYS]
    assert gpu.counts["copy to the GPU"] == 1
