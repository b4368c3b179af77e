"""The items (images) of a prompt, as the scheduler and the engine see them: digests, spans and sizes, no pixels.

The tensors of an item are made only when a shard lacks the item (`MediaItem.prepare`).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Grid = tuple[int, int, int]
"""The patches of an item in time, height and width: the `image_grid_thw` of transformers' processors."""


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """Placeholder tokens of a prompt in a row, which stand for consecutive rows of one item.

    `start` is the prompt position of the first placeholder, and `first_row` is the row that stands there. `grid` is
    given for a model whose positions follow from it (M-RoPE), and is None for all others.
    """

    digest: bytes  # 16 bytes
    start: int
    num_tokens: int
    first_row: int
    grid: Grid | None = None

    @property
    def end(self) -> int:
        """The prompt position behind the last placeholder."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class TensorPart:
    """One tensor that the tower takes, named as transformers' processor names the tensor.

    `data` holds the elements of `shape` in C order, little-endian, of the type `dtype`: "float32", "bfloat16",
    "float16", "int64", "int32" or "bool".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One item of a prompt.

    Equal digests name equal items, also in other requests: blake2b-16 over the kind, the original bytes and all
    settings that decide the tensors. `spans` cover the rows 0 .. num_rows - 1 in order. `num_tensor_bytes` counts the
    data of all tensors that `prepare` returns. `prepare` returns equal tensors each time, may be called several times,
    and raises when the tensors cannot be made. `is_new` says that the item was read for this request, so that a shard
    keeps the item only where another request has brought it since.
    """

    digest: bytes  # 16 bytes
    kind: str  # one of `ShardFacts.media_kinds`
    num_rows: int
    num_tensor_bytes: int
    spans: tuple[MediaSpan, ...]
    prepare: Callable[[], Awaitable[tuple[TensorPart, ...]]]
    is_new: bool = False

    def num_bytes(self, row_bytes: int) -> int:
        """Return the bytes that the item takes in a shard, which keeps the tensors or the rows, whichever are more."""
        return max(self.num_tensor_bytes, self.num_rows * row_bytes)


def request_bytes(items: tuple[MediaItem, ...], row_bytes: int) -> int:
    """Return the bytes that the items of a request take in a shard. An item that comes twice counts once."""
    return sum({item.digest: item.num_bytes(row_bytes) for item in items}.values())
