"""Keeps images on rank 0: first their tensors, then, once the tower has run, their rows (rule 33).

The store holds at most a number of bytes. An item that is needed is not given up: a slot has pinned it, or a lease of
it runs. A lease begins each time that the router puts the item or asks for it. The lease ends with the pin of the
request for which the router did so, or after some seconds. Of the others, the item used longest ago goes first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from textmill_shard.model.media import MediaRows

LEASE_S = 30.0


class NoMediaRoom(Exception):
    """Items that are needed leave no room for another one now."""


@dataclass(slots=True, eq=False)
class KeptItem:
    """One item. Only the store reads and writes the fields.

    `num_bytes` counts for the tensors or the rows, whichever are more, so that the tower needs no further room.
    """

    num_bytes: int
    num_rows: int  # by the header
    tensors: Mapping[str, torch.Tensor] | None
    rows: MediaRows | None
    lease_ends_s: list[float]  # rising
    num_pins: int = 0

    def is_needed(self, now_s: float) -> bool:
        """Whether a pin or a lease holds the item."""
        return self.num_pins > 0 or (bool(self.lease_ends_s) and self.lease_ends_s[-1] > now_s)


class MediaStore:
    """The items of rank 0. Any thread may call any method.

    `clock` gives seconds. `on_change` is called with the bytes of all items after each change.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        row_bytes: int,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int], object] = lambda num_bytes: None,
    ) -> None:
        """`row_bytes` are the bytes of one row, with the rows for deeper layers."""
        self.max_bytes = max_bytes
        self._row_bytes = row_bytes
        self._lease_s = lease_s
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._items: OrderedDict[bytes, KeptItem] = OrderedDict()  # the one used longest ago first
        self._reserved_bytes = 0  # of items that are on their way
        self._num_bytes = 0

    def num_item_bytes(self, num_tensor_bytes: int, num_rows: int) -> int:
        """Return the bytes that an item of this size counts for."""
        return max(num_tensor_bytes, num_rows * self._row_bytes)

    def kept(self, digests: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests whose items are kept, and begin a lease of each."""
        with self._lock:
            found = tuple(digest for digest in digests if digest in self._items)
            for digest in found:
                self._begin_lease(self._items[digest])
                self._items.move_to_end(digest)
        return found

    def reserve(self, num_bytes: int) -> None:
        """Make room for an item that is on its way. Raises NoMediaRoom. `put` or `give_back` follows."""
        with self._lock:
            now_s = self._clock()
            free_bytes = self.max_bytes - self._num_bytes - self._reserved_bytes
            unneeded = []
            for digest, item in self._items.items():
                if free_bytes >= num_bytes:
                    break
                if not item.is_needed(now_s):
                    unneeded.append(digest)
                    free_bytes += item.num_bytes
            if free_bytes < num_bytes:
                raise NoMediaRoom(
                    f"the image takes {num_bytes} bytes, and {free_bytes} of {self.max_bytes} are free "
                    "(--media-cache-bytes)"
                )
            for digest in unneeded:
                self._forget(digest)
            self._reserved_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Give up the room for an item that does not come."""
        with self._lock:
            self._reserved_bytes -= num_bytes

    def put(self, digest: bytes, tensors: Mapping[str, torch.Tensor], *, num_rows: int, num_bytes: int) -> None:
        """Keep an item in the room that was reserved for it. An item that is kept already stays as it is."""
        with self._lock:
            self._reserved_bytes -= num_bytes
            item = self._items.get(digest)
            if item is None:
                item = self._items[digest] = KeptItem(num_bytes, num_rows, tensors, None, [])
                self._num_bytes += num_bytes
            self._begin_lease(item)
            self._tell()

    def pin(self, digest: bytes) -> KeptItem | None:
        """Keep an item until `unpin` of what is returned, which is None where the item is not there.

        The pin takes the place of the oldest lease.
        """
        with self._lock:
            item = self._items.get(digest)
            if item is not None:
                item.num_pins += 1
                del item.lease_ends_s[:1]
                self._items.move_to_end(digest)
            return item

    def unpin(self, item: KeptItem) -> None:
        """End one `pin`. An item without a pin and a lease may be given up from now on."""
        with self._lock:
            assert item.num_pins > 0
            item.num_pins -= 1

    def end_leases(self) -> None:
        """Let no item be held by a lease, because the router that wanted them has gone."""
        with self._lock:
            for item in self._items.values():
                item.lease_ends_s.clear()

    def tensors_of(self, digest: bytes) -> Mapping[str, torch.Tensor] | None:
        """Return the tensors of an item whose rows are not there, and None of any other."""
        with self._lock:
            item = self._items.get(digest)
            return None if item is None else item.tensors

    def num_rows_of(self, digest: bytes) -> int | None:
        """Return the number of rows of an item whose rows are there, and None of any other."""
        with self._lock:
            item = self._items.get(digest)
            return None if item is None or item.rows is None else len(item.rows.rows_nD)

    def rows_of(self, digest: bytes) -> MediaRows:
        """Return the rows of an item that is pinned and has rows."""
        with self._lock:
            rows = self._items[digest].rows
        assert rows is not None, digest.hex()
        return rows

    def set_rows(self, digest: bytes, rows: MediaRows) -> str | None:
        """Keep the rows of an item in the place of its tensors. Returns the reason where they are not as announced."""
        with self._lock:
            item = self._items.get(digest)
            if item is None:
                return None  # nobody needed the item any more
            if len(rows.rows_nD) != item.num_rows:
                return f"the model makes {len(rows.rows_nD)} rows of the image, and {item.num_rows} were announced"
            item.rows, item.tensors = rows, None
            self._items.move_to_end(digest)
            return None

    def forget(self, digest: bytes) -> None:
        """Give up an item of which the tower makes no rows, although slots may have pinned it."""
        with self._lock:
            if digest in self._items:
                self._forget(digest)

    @property
    def num_bytes(self) -> int:
        """The bytes that all items count for."""
        return self._num_bytes

    def _begin_lease(self, item: KeptItem) -> None:
        now_s = self._clock()
        item.lease_ends_s = [end_s for end_s in item.lease_ends_s if end_s > now_s]
        item.lease_ends_s.append(now_s + self._lease_s)

    def _forget(self, digest: bytes) -> None:
        self._num_bytes -= self._items.pop(digest).num_bytes
        self._tell()

    def _tell(self) -> None:
        self._on_change(self._num_bytes)
