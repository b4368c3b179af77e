"""Images of requests as the engine gets them, without pixels and without a worker."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

from textmill_router.media.media_item import MediaItem, MediaSpan, TensorPart

ROW_BYTES = 4


def image_digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def make_image(
    name: str,
    start: int,
    num_tokens: int,
    *,
    num_tensor_bytes: int = 8,
    prepare: Callable[[], None] = lambda: None,
) -> MediaItem:
    """Return an image that fills the prompt's tokens from `start` on. `prepare` is called when tensors are made."""
    digest = image_digest(name)

    async def make_tensors() -> tuple[TensorPart, ...]:
        prepare()
        return (TensorPart("pixel_values", "float32", (num_tensor_bytes // 4,), bytes(num_tensor_bytes)),)

    return MediaItem(
        digest=digest,
        kind="llava",
        num_rows=num_tokens,
        num_tensor_bytes=num_tensor_bytes,
        spans=(MediaSpan(digest, start, num_tokens, 0),),
        prepare=make_tensors,
    )


def with_spans(item: MediaItem, *spans: tuple[int, int]) -> MediaItem:
    """Return the image in several spans, each (start, number of tokens), over its rows in order."""
    rows = 0
    found = []
    for start, num_tokens in spans:
        found.append(MediaSpan(item.digest, start, num_tokens, rows))
        rows += num_tokens
    return replace(item, num_rows=rows, spans=tuple(found))
