"""Images for the formula of `step_harness.py`: an image is a list of numbers, one row each."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import torch
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_put import IncomingItem, MediaHeader, TensorHeader, check_header
from textmill_shard.engine.media_store import MediaStore
from textmill_shard.model.media import MediaFacts, MediaRows, TensorRule
from textmill_shard.slots.plan import Admit, MediaSpan

from tests.fakes.step_harness import FACTS, WAIT_S

ROW_BYTES = 4  # one float32
MAX_BYTES = 400
PLACEHOLDER = 48  # an id of a row's place; the formula reads the row in its place
FORMULA_FACTS = MediaFacts(
    kinds=("formula",),
    row_bytes=ROW_BYTES,
    num_deepstack=0,
    uncut_spans=False,
    has_rope_positions=False,
    tensor_names={"pixels": TensorRule(dtypes=("float32",), num_dims=1)},
)
SHARD_FACTS = replace(FACTS, media_kinds=("formula",), media_cache_bytes=MAX_BYTES, media_row_bytes=ROW_BYTES)


class FormulaTower:
    """Makes a row of each pixel. A test may close the `gate`, replace `raises`, and read what was encoded."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.raises: Callable[[list[int]], Exception | None] = lambda pixels: None
        self.num_rows: Callable[[int], int] = lambda num_pixels: num_pixels
        self.encoded: list[list[int]] = []

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> MediaRows:
        self.began.set()
        assert self.gate.wait(WAIT_S)
        pixels = [int(value) for value in tensors["pixels"].tolist()]
        self.encoded.append(pixels)
        error = self.raises(pixels)
        if error is not None:
            raise error
        return MediaRows(tensors["pixels"][: self.num_rows(len(pixels)), None])


def media_desk(
    tower: FormulaTower,
    *,
    max_bytes: int = MAX_BYTES,
    clock: Callable[[], float] = time.monotonic,
    on_encoded: Callable[[], object] = lambda: None,
    runs_beside_steps: bool = True,
    encode_s_per_element: float = 0.0,
    tower_clock: Callable[[], float] = time.monotonic,
) -> MediaDesk:
    """Return a desk with an empty store, whose tower is the formula. The desk has `tower_clock`, the store `clock`."""
    store = MediaStore(max_bytes=max_bytes, row_bytes=ROW_BYTES, clock=clock)
    return MediaDesk(
        store,
        FORMULA_FACTS,
        tower,
        device=torch.device("cpu"),
        runs_beside_steps=runs_beside_steps,
        on_encoded=on_encoded,
        encode_s_per_element=encode_s_per_element,
        clock=tower_clock,
    )


def image_digest(pixels: Sequence[int]) -> bytes:
    return blake2b(bytes(pixels), digest_size=16).digest()


def put_image(desk: MediaDesk, pixels: Sequence[int], *, num_rows: int | None = None) -> bytes:
    """Put an image as the router does, and return its digest."""
    digest = image_digest(pixels)
    tensor = TensorHeader("pixels", "float32", (len(pixels),))
    header = MediaHeader(digest, "formula", (tensor,), len(pixels) if num_rows is None else num_rows)
    check_header(header, FORMULA_FACTS, max_bytes=desk.store.max_bytes)
    item = IncomingItem(header, desk.store)
    item.write(torch.tensor(pixels, dtype=torch.float32).numpy().tobytes())
    item.finish()
    return digest


def with_images(admit: Admit, *images: tuple[int, Sequence[int]]) -> Admit:
    """Return the admit with images, each with the position of its first placeholder and its pixels.

    The prompt of the admit has placeholders there.
    """
    spans = []
    for start, pixels in images:
        assert admit.prompt_ids[start : start + len(pixels)].tolist() == [PLACEHOLDER] * len(pixels)
        spans.append(MediaSpan(image_digest(pixels), start, len(pixels), 0))
    return replace(admit, media=tuple(spans))
