"""Which rows run together, with small numbers and with random calls."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.tasks.row_queue import BatchLimits, CallNumber, QueuedRow, RowQueue

LIMITS = BatchLimits(max_size=40, max_rows=8)


def queue_of(*calls: list[int], kind: str = "labels") -> RowQueue[str]:
    queue: RowQueue[str] = RowQueue()
    for number, lengths in enumerate(calls):
        queue.add(CallNumber(number), kind, [(length, f"{number}.{place}") for place, length in enumerate(lengths)])
    return queue


def contents(batch: list[QueuedRow[str]]) -> list[str]:
    return sorted(row.content for row in batch)


def test_rows_of_like_length_run_together_with_the_oldest_one() -> None:
    queue = queue_of([10], [3], [9], [11], [2])
    assert contents(queue.next_batch(LIMITS)) == ["0.0", "2.0", "3.0"]  # 3 x 11 tokens, and 4 x 11 are too many
    assert contents(queue.next_batch(LIMITS)) == ["1.0", "4.0"]
    assert queue.next_batch(LIMITS) == []
    assert len(queue) == queue.size == 0


def test_rows_that_are_put_back_alone_run_first_and_one_by_one() -> None:
    queue = queue_of([10, 10], [10])
    refused = queue.next_batch(LIMITS)
    queue.add(CallNumber(9), "labels", [(10, "9.0"), (10, "9.1")])
    queue.put_back_alone(refused)
    batches = [queue.next_batch(LIMITS) for _ in range(4)]
    assert contents(batches[0]) == ["0.0"]
    assert not any(row.is_suspect for batch in batches for row in batch)
    assert sorted(map(contents, batches)) == [["0.0"], ["0.1"], ["1.0"], ["9.0", "9.1"]]
    assert len(queue) == queue.size == 0


def test_a_row_longer_than_a_batch_runs_alone() -> None:
    queue = queue_of([50], [4])
    assert contents(queue.next_batch(LIMITS)) == ["0.0"]
    assert contents(queue.next_batch(LIMITS)) == ["1.0"]


def test_without_padding_a_batch_counts_its_own_tokens() -> None:
    queue = queue_of([2], [2], [30], [2])
    assert contents(queue.next_batch(BatchLimits(40, 8, counts_padding=False))) == ["0.0", "1.0", "2.0", "3.0"]


def test_a_call_has_half_of_a_batch_while_others_wait() -> None:
    queue = queue_of([4] * 20, [4] * 3, [4])
    assert Counter(row.call for row in queue.next_batch(LIMITS)) == {0: 4, 1: 3, 2: 1}
    assert Counter(row.call for row in queue.next_batch(LIMITS)) == {0: 8}  # nobody else is there any more


def test_rows_beyond_a_share_make_no_other_share_too_large() -> None:
    # Three rows of 11 tokens fit a batch, so no call may have two beside one of them, while rows of others are left.
    queue = queue_of([5, 11, 11, 11], [5, 5])
    batch = queue.next_batch(BatchLimits(40, 8, counts_padding=False))
    assert contents(batch) == ["0.0", "1.0", "1.1"]


def test_a_call_of_many_rows_holds_up_a_call_of_another_length_for_one_batch() -> None:
    queue = queue_of([4] * 1000, [39])
    queue.next_batch(LIMITS)
    assert contents(queue.next_batch(LIMITS)) == ["1.0"]


def test_kinds_do_not_mix() -> None:
    queue = queue_of([4], [4])
    queue.add(CallNumber(7), "vectors", [(4, "v")])
    assert contents(queue.next_batch(LIMITS)) == ["0.0", "1.0"]
    assert contents(queue.next_batch(LIMITS)) == ["v"]


def test_rows_that_no_shard_has_seen_are_the_next_ones() -> None:
    queue = queue_of([4], [30], [30])
    unsent = queue.next_batch(LIMITS)
    queue.put_back(unsent)
    assert queue.next_batch(LIMITS) == unsent


def test_rows_of_a_lost_batch_come_first_and_one_by_one() -> None:
    queue = queue_of([10, 10], [10])
    lost = queue.next_batch(LIMITS)
    queue.add(CallNumber(9), "labels", [(10, "9.0"), (10, "9.1")])
    queue.put_back_suspects(lost[1:])
    queue.put_back_suspects(lost[:1])
    assert (len(queue), queue.size, queue.num_calls) == (5, 50, 3)
    orders = []
    for _ in lost:
        assert queue.has_suspects
        [row] = queue.next_batch(LIMITS)
        assert row.is_suspect
        orders.append(row.order)
    assert orders == [1, 2, 3]
    assert not queue.has_suspects
    assert contents(queue.next_batch(LIMITS)) == ["9.0", "9.1"]


def test_suspects_that_no_shard_has_seen_stay_suspects() -> None:
    queue = queue_of([10], [10])
    queue.put_back_suspects(queue.next_batch(LIMITS))
    unsent = queue.next_batch(LIMITS)
    queue.put_back(unsent)
    assert queue.next_batch(LIMITS) == unsent
    assert len(queue) == 1


def test_a_call_that_has_left_takes_its_rows_with_it() -> None:
    queue = queue_of([4, 5], [6])
    assert queue.drop(CallNumber(0)) == 2
    assert queue.drop(CallNumber(0)) == 0
    assert contents(queue.next_batch(LIMITS)) == ["1.0"]
    assert (len(queue), queue.size, queue.num_calls) == (0, 0, 0)


# Lengths of the rows of a call and its kind, a batch, a loss of the batch before (with its shard, or unsent), or the
# leaving of a call.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(1, 60), min_size=1, max_size=30), st.sampled_from("ab")),
        st.tuples(st.just("batch"), st.none(), st.none()),
        st.tuples(st.sampled_from(["lose", "keep"]), st.none(), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 20), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, counts_padding=st.booleans())
def test_no_row_is_lost_or_taken_twice_and_no_call_starves(steps: list[tuple], counts_padding: bool) -> None:  # type: ignore[type-arg]
    limits = BatchLimits(max_size=40, max_rows=8, counts_padding=counts_padding)
    queue: RowQueue[tuple[int, int]] = RowQueue()
    waiting: dict[tuple[int, int], tuple[int, str]] = {}
    running: list[QueuedRow[tuple[int, int]]] = []
    turns_of: dict[int, int] = {}  # batches since the call last had a row in a batch
    suspects: set[tuple[int, int]] = set()
    calls = losses = 0

    def take_batch() -> None:
        nonlocal running
        running = queue.next_batch(limits)
        if suspects:
            assert [row.content for row in running] == [min(suspects)]
            suspects.remove(running[0].content)
            assert waiting.pop(running[0].content) == (running[0].size, running[0].kind)
            return
        assert bool(running) == bool(waiting)
        kinds = {row.kind for row in running}
        for row in running:
            assert waiting.pop(row.content) == (row.size, row.kind)
        assert len(kinds) <= 1
        assert len(running) <= limits.max_rows
        longest = max((row.size for row in running), default=0)
        cost = longest * len(running) if counts_padding else sum(row.size for row in running)
        assert cost <= limits.max_size or len(running) == 1
        counts = Counter(row.call for row in running)
        left = {call for (call, _), (_, kind) in waiting.items() if kind in kinds}
        for call, count in counts.items():
            if left - {call}:
                assert count <= max(1, limits.max_rows_of(longest) // 2)
        for call in {call for call, _ in waiting} | set(counts):
            turns_of[call] = 0 if call in counts else turns_of[call] + 1
            assert turns_of[call] <= calls + losses  # the rows of a lost batch go first

    for what, value, kind in steps:
        if what == "add":
            rows = [(length, (calls, place)) for place, length in enumerate(value)]
            queue.add(CallNumber(calls), kind, rows)
            waiting.update({content: (length, kind) for length, content in rows})
            turns_of[calls] = 0
            calls += 1
        elif what == "batch":
            take_batch()
        elif what == "lose":
            queue.put_back_suspects(running)
            suspects |= {row.content for row in running}
            waiting.update({row.content: (row.size, row.kind) for row in running})
            running = []
        elif what == "keep":
            queue.put_back(running)
            suspects |= {row.content for row in running if row.is_suspect}
            losses += 1
            waiting.update({row.content: (row.size, row.kind) for row in running})
            running = []
        else:
            gone = [content for content in waiting if content[0] == value]
            assert queue.drop(CallNumber(value)) == len(gone)
            for content in gone:
                del waiting[content]
            suspects = {content for content in suspects if content[0] != value}
            running = [row for row in running if row.call != value]
        assert len(queue) == len(waiting)
        assert queue.has_suspects == bool(suspects)
        assert queue.num_calls == len({call for call, _ in waiting})
        assert queue.size == sum(length for length, _ in waiting.values())
    while waiting:
        take_batch()
    assert queue.next_batch(limits) == []
