"""The registry of adapters by hand, and over 1,000 random sequences (`tests/fakes/adapter_world.py`)."""

import pytest
from textmill_router.adapters.registry import (
    AdapterFacts,
    AdapterRegistry,
    AdapterSource,
    AdapterState,
    NameTaken,
    UnknownAdapter,
)
from textmill_router.request import Adapter

from tests.fakes.adapter_world import AdapterCounts, AdapterWorld

ONE, TWO = b"1" * 16, b"2" * 16
NUM_RUNS = 500


def facts(digest: bytes, num_bytes: int = 100) -> AdapterFacts:
    return AdapterFacts(digest, max_rank=8, num_bytes=num_bytes, num_modules=3, target_names=("q_proj",))


def load(registry: AdapterRegistry, name: str, digest: bytes, *, in_place: bool = False) -> None:
    source = AdapterSource(f"/adapters/{name}", name)
    registry.begin_load(name, source, in_place=in_place)
    registry.note_loaded(facts(digest), source.folder)
    registry.finish_load(name, source, facts(digest))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_random_sequences_keep_what_is_named_or_held_and_end_empty(num_shards: int):
    counts = AdapterCounts()
    for seed in range(NUM_RUNS):
        counts.add(AdapterWorld(seed, num_shards=num_shards).run())
    assert counts.loads > 1500
    assert counts.refusals > 200
    assert counts.in_place > 200
    assert counts.unloads > 500
    assert counts.calls > 1000
    assert counts.deaths > 900
    assert counts.deaths_in_loads > 200
    assert counts.withdrawn > 10
    assert counts.freed > 900


def test_a_name_without_weights_gives_no_adapter():
    registry = AdapterRegistry()
    registry.register("a", AdapterSource("/adapters/a", "a"))
    assert registry.acquire("a") is None
    assert (registry.is_empty, registry.num_loaded) == (False, 0)
    load(registry, "a", ONE)
    assert registry.acquire("a") == Adapter("a", ONE)
    assert registry.num_loaded == 1


def test_a_call_keeps_its_digest_when_the_name_gets_other_weights():
    registry = AdapterRegistry()
    load(registry, "a", ONE)
    before = registry.acquire("a")
    load(registry, "a", TWO, in_place=True)
    after = registry.acquire("a")
    assert (before, after) == (Adapter("a", ONE), Adapter("a", TWO))
    assert registry.next_unload() is None
    assert before is not None
    registry.release(before)
    assert registry.next_unload() == ONE
    registry.finish_unload(ONE)
    assert registry.wanted() == {TWO: "/adapters/a"}


def test_weights_leave_when_the_name_is_gone_and_the_last_holder_has_left():
    registry = AdapterRegistry()
    load(registry, "a", ONE)
    first, second = registry.acquire("a"), registry.acquire("a")
    assert registry.remove("a") == ONE
    assert registry.acquire("a") is None
    assert registry.wanted() == {ONE: "/adapters/a"}  # a shard that starts again needs them
    assert first is not None
    assert second is not None
    registry.release(first)
    assert registry.next_unload() is None
    registry.release(second)
    assert registry.next_unload() == ONE


def test_two_names_of_one_digest_share_the_weights():
    registry = AdapterRegistry()
    load(registry, "a", ONE)
    load(registry, "b", ONE)
    assert registry.num_bytes == 100
    registry.remove("a")
    assert registry.next_unload() is None
    assert registry.acquire("b") == Adapter("b", ONE)


def test_a_taken_name_needs_in_place_and_a_failed_load_leaves_what_was():
    registry = AdapterRegistry()
    load(registry, "a", ONE)
    source = AdapterSource("/adapters/other", "other")
    with pytest.raises(NameTaken):
        registry.begin_load("a", source)
    registry.begin_load("a", source, in_place=True)
    assert registry.is_in_work("a")
    registry.note_loaded(facts(TWO), source.folder)  # one shard has read it, another one refuses
    registry.fail_load("a", facts(TWO))
    found = registry.find("a")
    assert found is not None
    assert (found.root, found.facts) == ("a", facts(ONE))
    assert registry.next_unload() == TWO  # which the first shard still holds


def test_a_failed_first_load_leaves_no_name():
    registry = AdapterRegistry()
    registry.begin_load("a", AdapterSource("/adapters/a", "a"))
    found = registry.find("a")
    assert found is not None
    assert found.state is AdapterState.LOADING
    registry.fail_load("a", None)
    assert registry.listed() == []
    with pytest.raises(UnknownAdapter):
        registry.remove("a")


def test_withdrawn_weights_have_no_name_and_are_not_restored():
    registry = AdapterRegistry()
    load(registry, "a", ONE)
    load(registry, "b", ONE)
    held = registry.acquire("a")
    assert registry.withdraw(ONE) == ("a", "b")
    assert registry.wanted() == {}
    assert registry.listed() == []
    assert held is not None
    registry.release(held)
    assert registry.next_unload() == ONE


def test_lists_count_calls_and_requests_by_name():
    registry = AdapterRegistry()
    load(registry, "a", ONE)
    load(registry, "b", ONE)
    held = registry.acquire("a")
    registry.note_requests("a", 3)
    registry.note_requests("gone", 1)
    shown = [(one.name, one.num_calls, one.num_requests) for one in registry.listed()]
    assert shown == [("a", 1, 3), ("b", 0, 0)]
    assert held is not None
