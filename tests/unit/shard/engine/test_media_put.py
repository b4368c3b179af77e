"""What the router puts is checked by its header, before anything is made room for, and by its bytes."""

from dataclasses import replace

import pytest
import torch
from textmill_shard.engine.media_put import IncomingItem, MediaHeader, MediaRefused, TensorHeader, check_header
from textmill_shard.engine.media_store import MediaStore, NoMediaRoom
from textmill_shard.model.media import MediaFacts, TensorRule

FACTS = MediaFacts(
    kinds=("llava",),
    row_bytes=8,
    num_deepstack=0,
    uncut_spans=False,
    has_rope_positions=False,
    tensor_names={
        "pixel_values": TensorRule(dtypes=("float32", "bfloat16"), num_dims=3),
        "image_sizes": TensorRule(dtypes=("int64",), num_dims=2),
        "mask": TensorRule(dtypes=("bool",), num_dims=1, is_required=False),
    },
)
PIXELS = TensorHeader("pixel_values", "bfloat16", (1, 3, 5))
SIZES = TensorHeader("image_sizes", "int64", (1, 2))
HEADER = MediaHeader(b"d" * 16, "llava", (PIXELS, SIZES), num_rows=4)


def with_tensors(*tensors: TensorHeader) -> MediaHeader:
    return replace(HEADER, tensors=tensors)


@pytest.mark.parametrize("mask", [(), (TensorHeader("mask", "bool", (7,)),)])
def test_a_header_that_fits_passes(mask: tuple[TensorHeader, ...]) -> None:
    check_header(with_tensors(*mask, PIXELS, SIZES), FACTS, max_bytes=100)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (replace(HEADER, digest=b"short"), "a digest has 16 bytes, got 5"),
        (replace(HEADER, kind="gemma3"), "kinds of items are llava, got 'gemma3'"),
        (with_tensors(PIXELS), r"the tensor \['image_sizes'\] is missing"),
        (with_tensors(PIXELS, SIZES, SIZES), "a tensor comes twice"),
        (with_tensors(PIXELS, SIZES, replace(SIZES, name="weights")), "got the tensor 'weights'"),
        (with_tensors(replace(PIXELS, dtype="int64"), SIZES), "is of float32 or bfloat16, got 'int64'"),
        (with_tensors(replace(PIXELS, dtype="__class__"), SIZES), "is of float32 or bfloat16"),
        (with_tensors(replace(PIXELS, shape=(15,)), SIZES), r"has 3 dimensions, got the shape \(15,\)"),
        (with_tensors(replace(PIXELS, shape=(1, 0, 5)), SIZES), r"has elements, got the shape \(1, 0, 5\)"),
        (with_tensors(replace(PIXELS, shape=(2**31, 2**31, 2**31)), SIZES), "an item takes at most 100 bytes"),
        (replace(HEADER, num_rows=0), "at least one row"),
        (replace(HEADER, num_rows=13), "takes at most 100 bytes, got 104"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_by_name(header: MediaHeader, message: str) -> None:
    with pytest.raises(MediaRefused, match=message):
        check_header(header, FACTS, max_bytes=100)


@pytest.mark.parametrize("piece", [1, 7, 46])
def test_tensors_come_out_of_the_bytes_whatever_the_pieces(piece: int) -> None:
    """The second tensor begins at byte 30, which is no multiple of its eight bytes."""
    store = MediaStore(max_bytes=100, row_bytes=8)
    pixels = torch.randn(1, 3, 5).to(torch.bfloat16)
    sizes = torch.tensor([[2**40, -3]])
    data = pixels.view(torch.int16).numpy().tobytes() + sizes.numpy().astype("<i8").tobytes()
    item = IncomingItem(HEADER, store)
    for start in range(0, len(data), piece):
        item.write(data[start : start + piece])
    item.finish()
    item.abandon()  # does nothing
    tensors = store.tensors_of(HEADER.digest)
    assert tensors is not None
    assert torch.equal(tensors["pixel_values"], pixels)
    assert torch.equal(tensors["image_sizes"], sizes)
    assert store.num_bytes == 46


def test_too_many_and_too_few_bytes_are_refused_and_leave_nothing_behind() -> None:
    store = MediaStore(max_bytes=100, row_bytes=8)
    item = IncomingItem(HEADER, store)
    with pytest.raises(MediaRefused, match="have 46 bytes, got 47"):
        item.write(bytes(47))
    item.abandon()
    item = IncomingItem(HEADER, store)
    item.write(bytes(45))
    with pytest.raises(MediaRefused, match="have 46 bytes, got 45"):
        item.finish()
    item.abandon()
    store.reserve(100)
    assert store.kept([HEADER.digest]) == ()


def test_an_item_without_room_is_not_begun() -> None:
    store = MediaStore(max_bytes=45, row_bytes=8)
    with pytest.raises(NoMediaRoom):
        IncomingItem(HEADER, store)
