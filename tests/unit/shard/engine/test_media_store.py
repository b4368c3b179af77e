"""Rule 33: which images rank 0 keeps, and for how long."""

import pytest
import torch
from textmill_shard.engine.media_store import MediaStore, NoMediaRoom
from textmill_shard.model.media import MediaRows

LEASE_S = 30.0


class World:
    """A store of 100 bytes with a clock of the test. A row has 2 bytes."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.told: list[int] = []
        self.store = MediaStore(
            max_bytes=100, row_bytes=2, lease_s=LEASE_S, clock=lambda: self.now_s, on_change=self.told.append
        )

    def put(self, name: str, num_bytes: int) -> None:
        self.store.reserve(num_bytes)
        self.store.put(name.encode(), {"pixels": torch.zeros(1)}, num_rows=3, num_bytes=num_bytes)

    def kept(self) -> str:
        """Return the names of the items, in order of the alphabet, without renewing their leases."""
        names = "abcdefg"
        found = [name for name in names if self.store.tensors_of(name.encode()) is not None]
        return "".join(found)


def test_the_item_used_longest_ago_goes_first() -> None:
    world = World()
    for name in "abc":
        world.put(name, 30)
    world.now_s = LEASE_S
    pinned = world.store.pin(b"a")  # used again
    assert pinned is not None
    world.store.unpin(pinned)
    world.put("d", 30)
    assert world.kept() == "acd"
    world.put("e", 60)
    assert world.kept() == "de"
    assert world.told[-1] == world.store.num_bytes == 90


def test_a_lease_keeps_an_item_for_its_time_and_a_question_renews_the_lease() -> None:
    world = World()
    world.put("a", 60)
    world.put("b", 40)
    with pytest.raises(NoMediaRoom, match="takes 10 bytes, and 0 of 100 are free"):
        world.store.reserve(10)
    world.now_s = LEASE_S - 1
    assert world.store.kept([b"a", b"x"]) == (b"a",)
    world.now_s = LEASE_S + 1
    world.put("c", 10)
    assert world.kept() == "ac"
    world.store.end_leases()
    world.put("d", 90)
    assert world.kept() == "cd"


def test_a_pin_takes_the_place_of_one_lease() -> None:
    """Two requests want the image. The first has computed it, and the second is not admitted yet."""
    world = World()
    world.put("a", 100)
    assert world.store.kept([b"a"]) == (b"a",)
    for is_last in (False, True):
        pin = world.store.pin(b"a")
        assert pin is not None
        world.store.unpin(pin)
        if not is_last:
            with pytest.raises(NoMediaRoom):
                world.store.reserve(1)
    world.store.reserve(100)  # long before the leases would end


def test_a_pin_keeps_an_item_until_the_last_pin_ends() -> None:
    world = World()
    world.put("a", 100)
    world.now_s = LEASE_S
    pins = [world.store.pin(b"a"), world.store.pin(b"a")]
    for pin in pins:
        with pytest.raises(NoMediaRoom):
            world.store.reserve(1)
        assert pin is not None
        world.store.unpin(pin)
    world.put("b", 1)
    assert world.kept() == "b"
    assert world.store.pin(b"a") is None


def test_room_that_is_reserved_is_taken_until_it_is_given_back() -> None:
    world = World()
    world.store.reserve(60)
    with pytest.raises(NoMediaRoom):
        world.store.reserve(41)
    world.store.give_back(60)
    world.store.reserve(100)
    assert world.store.num_bytes == 0


def test_an_item_that_comes_twice_counts_once() -> None:
    world = World()
    world.store.reserve(40)
    world.put("a", 40)
    world.store.put(b"a", {"pixels": torch.ones(1)}, num_rows=3, num_bytes=40)
    assert world.store.num_bytes == 40
    world.store.reserve(60)  # and gave back the room of the second


def test_rows_take_the_place_of_tensors_and_must_be_as_many_as_announced() -> None:
    world = World()
    world.put("a", 40)
    world.put("b", 40)
    assert world.store.num_rows_of(b"a") is None
    assert world.store.set_rows(b"a", MediaRows(torch.zeros(3, 1))) is None
    assert (world.store.num_rows_of(b"a"), world.store.tensors_of(b"a")) == (3, None)
    assert len(world.store.rows_of(b"a").rows_nD) == 3
    fault = world.store.set_rows(b"b", MediaRows(torch.zeros(4, 1)))
    assert fault == "the model makes 4 rows of the image, and 3 were announced"
    assert world.store.num_rows_of(b"b") is None
    assert world.store.set_rows(b"gone", MediaRows(torch.zeros(4, 1))) is None


@pytest.mark.parametrize(("num_tensor_bytes", "expected"), [(4, 6), (8, 8)])
def test_an_item_counts_for_its_tensors_or_its_rows(num_tensor_bytes: int, expected: int) -> None:
    assert World().store.num_item_bytes(num_tensor_bytes, 3) == expected
