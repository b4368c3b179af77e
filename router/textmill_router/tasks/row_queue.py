"""The queue of rows, and which of its rows run together. Pure: no clock, no I/O.

A call has one row or several. Calls take turns: the call at the head of the queue chooses a batch by its oldest row,
and goes behind the others while rows of it are left. So a call of a thousand rows holds nobody up for longer than one
batch. The batch of a row has the rows whose lengths are nearest, because padding costs as much as text.

A row whose batch was lost with its shard is a suspect, because the row may have ended the shard. Suspects come before
all other rows, each in a batch of its own, and the owner of the queue lets nothing run beside such a batch.
"""

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, NewType, TypeVar

CallNumber = NewType("CallNumber", int)
Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a batch, in the unit of the rows' sizes: tokens of texts, or bytes of files.

    A batch costs rows x size of its longest row where `counts_padding` is set, and else the sum of the sizes.
    """

    max_size: int
    max_rows: int
    counts_padding: bool = True

    def max_rows_of(self, longest: int) -> int:
        """Return how many rows of this size a batch may have; at least one."""
        return max(1, min(self.max_rows, self.max_size // max(1, longest)))


@dataclass(frozen=True, slots=True)
class QueuedRow(Generic[Content]):
    """One row of a call. Rows of the same `kind` may run together. `order` is the row's place in the order of arrival.

    `is_suspect`: a batch with the row was lost with its shard.
    """

    call: CallNumber
    index: int  # of the row in its call
    kind: str
    size: int
    content: Content
    order: int = 0
    is_suspect: bool = False


class RowQueue(Generic[Content]):
    """The rows that wait. One owner calls all methods."""

    def __init__(self) -> None:
        self._num_added = 0
        self._rows_of: OrderedDict[CallNumber, dict[int, QueuedRow[Content]]] = OrderedDict()  # calls in turn
        # The keys (size, order) of the rows of a kind, sorted, and the rows by their order.
        self._lengths: dict[str, list[tuple[int, int]]] = {}
        self._by_order: dict[int, QueuedRow[Content]] = {}
        self._suspects: dict[int, QueuedRow[Content]] = {}  # by their order, sorted
        self.size = 0

    def __len__(self) -> int:
        return len(self._by_order) + len(self._suspects)

    @property
    def num_calls(self) -> int:
        """The number of calls that have a waiting row."""
        return len(self._rows_of.keys() | {row.call for row in self._suspects.values()})

    @property
    def has_suspects(self) -> bool:
        """Whether the next batch is a suspect."""
        return bool(self._suspects)

    def add(self, call: CallNumber, kind: str, rows: Sequence[tuple[int, Content]]) -> None:
        """Take all rows of a call, each as its size and its content."""
        assert call not in self._rows_of
        for index, (size, content) in enumerate(rows):
            self._num_added += 1
            self._insert(QueuedRow(call, index, kind, size, content, self._num_added))

    def put_back(self, rows: Sequence[QueuedRow[Content]]) -> None:
        """Take the rows of a batch again that no shard has seen, at the head of the queue and in their old order."""
        for row in rows:
            if row.is_suspect:
                self._add_suspects([row])
        self._put_first([row for row in rows if not row.is_suspect])

    def put_back_suspects(self, rows: Sequence[QueuedRow[Content]]) -> None:
        """Take the rows of a batch again that was lost with its shard."""
        self._add_suspects([replace(row, is_suspect=True) for row in rows])

    def put_back_alone(self, rows: Sequence[QueuedRow[Content]]) -> None:
        """Take the rows of a refused batch again, at the head of the queue. Each of them runs alone.

        Each row gets a kind of its own, so that no other row may run with the row.
        """
        self._put_first([replace(row, kind=f"{row.kind} of row {row.order}") for row in rows])

    def _add_suspects(self, rows: Sequence[QueuedRow[Content]]) -> None:
        every = [*self._suspects.values(), *rows]
        self._suspects = {row.order: row for row in sorted(every, key=lambda row: row.order)}
        self.size += sum(row.size for row in rows)

    def _put_first(self, rows: Sequence[QueuedRow[Content]]) -> None:
        for row in rows:
            self._insert(row)
        for call in reversed(list(dict.fromkeys(row.call for row in rows))):
            self._rows_of.move_to_end(call, last=False)

    def drop(self, call: CallNumber) -> int:
        """Forget the rows of a call, and return how many there were."""
        rows = list(self._rows_of.get(call, {}).values())
        for row in rows:
            self._remove(row)
        suspects = [row for row in self._suspects.values() if row.call == call]
        for row in suspects:
            self._remove_suspect(row)
        return len(rows) + len(suspects)

    def fills_batch(self, limits: BatchLimits) -> bool:
        """Whether the waiting rows are enough for a whole batch."""
        return len(self) >= limits.max_rows or self.size >= limits.max_size

    def next_batch(self, limits: BatchLimits) -> list[QueuedRow[Content]]:
        """Take the rows of the next batch out of the queue: the oldest row of the call in turn, and rows like it.

        While there are suspects, the batch is the oldest of them alone.
        A batch keeps to the limits, unless its one row is longer than a batch. While rows of other calls are left that
        could run in the batch, no call has more than half of the rows that the limits allow. Empty without rows.
        """
        if self._suspects:
            suspect = next(iter(self._suspects.values()))
            self._remove_suspect(suspect)
            return [suspect]
        if not self._by_order:
            return []
        head = next(iter(self._rows_of))
        anchor = self._rows_of[head][min(self._rows_of[head])]
        batch = self._choose(anchor, limits)
        for row in batch:
            self._remove(row)
        if head in self._rows_of:
            self._rows_of.move_to_end(head)
        return batch

    def _choose(self, anchor: QueuedRow[Content], limits: BatchLimits) -> list[QueuedRow[Content]]:
        lengths = self._lengths[anchor.kind]
        batch = _Batch(anchor, limits)
        place = bisect_left(lengths, (anchor.size, anchor.order))
        shorter, longer = place - 1, place + 1
        over_share: list[QueuedRow[Content]] = []
        num_seen = 1
        while shorter >= 0 or longer < len(lengths):
            is_longer = shorter < 0 or (
                longer < len(lengths) and lengths[longer][0] - anchor.size < anchor.size - lengths[shorter][0]
            )
            row = self._by_order[lengths[longer if is_longer else shorter][1]]
            if not batch.fits(row):
                if not is_longer:  # a still shorter row takes as much room, or little less
                    break
                longer = len(lengths)  # a still longer row does not fit either
                continue
            num_seen += 1
            if batch.keeps_shares(row):
                batch.take(row)
            else:
                over_share.append(row)
            if is_longer:
                longer += 1
            else:
                shorter -= 1
        if over_share and num_seen == len(lengths) and len({row.call for row in over_share}) == 1:
            for row in over_share:  # nobody else waits for what is left of the batch
                if batch.fits(row) and batch.keeps_shares_of_others(row):
                    batch.take(row)
        return batch.rows

    def _insert(self, row: QueuedRow[Content]) -> None:
        self._rows_of.setdefault(row.call, {})[row.index] = row
        self._by_order[row.order] = row
        insort(self._lengths.setdefault(row.kind, []), (row.size, row.order))
        self.size += row.size

    def _remove(self, row: QueuedRow[Content]) -> None:
        of_call = self._rows_of[row.call]
        del of_call[row.index]
        if not of_call:
            del self._rows_of[row.call]
        del self._by_order[row.order]
        lengths = self._lengths[row.kind]
        del lengths[bisect_left(lengths, (row.size, row.order))]
        if not lengths:
            del self._lengths[row.kind]
        self.size -= row.size

    def _remove_suspect(self, row: QueuedRow[Content]) -> None:
        del self._suspects[row.order]
        self.size -= row.size


class _Batch(Generic[Content]):
    """A batch that grows from its first row."""

    def __init__(self, anchor: QueuedRow[Content], limits: BatchLimits) -> None:
        self._limits = limits
        self.rows = [anchor]
        self._longest = anchor.size
        self._size = anchor.size
        self._num_of_call = Counter([anchor.call])
        self._largest_share = 1

    def fits(self, row: QueuedRow[Content]) -> bool:
        """Whether the batch keeps to its limits with one more row."""
        count = len(self.rows) + 1
        longest = max(self._longest, row.size)
        cost = count * longest if self._limits.counts_padding else self._size + row.size
        return count <= self._limits.max_rows and cost <= self._limits.max_size

    def keeps_shares(self, row: QueuedRow[Content]) -> bool:
        """Whether no call has more than half of what the limits allow, with one more row."""
        return max(self._largest_share, self._num_of_call[row.call] + 1) <= self._largest_share_beside(row)

    def _largest_share_beside(self, row: QueuedRow[Content]) -> int:
        return max(1, self._limits.max_rows_of(max(self._longest, row.size)) // 2)

    def keeps_shares_of_others(self, row: QueuedRow[Content]) -> bool:
        """Whether no other call has more than half of what the limits allow, with one more row."""
        others = (count for call, count in self._num_of_call.items() if call != row.call)
        return max(others, default=0) <= self._largest_share_beside(row)

    def take(self, row: QueuedRow[Content]) -> None:
        self.rows.append(row)
        self._longest = max(self._longest, row.size)
        self._size += row.size
        self._num_of_call[row.call] += 1
        self._largest_share = max(self._largest_share, self._num_of_call[row.call])
