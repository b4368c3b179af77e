"""Random loads, unloads, calls, cancels and deaths of shards around the registry of adapters.

The world plays the part of `engine/adapter_loads.py` and of the engine loops, step by step: between two shards of a
load anything else may happen. After each step the world checks what the registry must keep.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from textmill_router.adapters.registry import (
    AdapterFacts,
    AdapterRegistry,
    AdapterSource,
    NameTaken,
    UnknownAdapter,
)
from textmill_router.request import Adapter

NAMES = ("a", "b", "c")
NUM_FOLDERS = 4
BAD_FOLDER = "bad"


@dataclass(eq=False)
class Shard:
    """One replica: what it holds, and whether it serves."""

    is_up: bool = True
    held: set[bytes] = field(default_factory=set)


@dataclass
class AdapterCounts:
    """How often each kind of trouble has come up."""

    loads: int = 0
    refusals: int = 0
    in_place: int = 0
    unloads: int = 0
    calls: int = 0
    refused_calls: int = 0
    deaths: int = 0
    deaths_in_loads: int = 0
    withdrawn: int = 0
    freed: int = 0

    def add(self, other: "AdapterCounts") -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class AdapterWorld:
    """One random run. Folders `0` to `3` hold weights; two of them are equal, and their content may change."""

    def __init__(self, seed: int, *, num_shards: int = 2, num_steps: int = 60) -> None:
        self._random = Random(seed)
        self._num_steps = num_steps
        self.registry = AdapterRegistry()
        self.shards = [Shard() for _ in range(num_shards)]
        self.calls: list[Adapter] = []
        self.counts = AdapterCounts()
        self._content = {str(folder): min(folder, 2) for folder in range(NUM_FOLDERS)}  # 2 and 3 are equal
        self._work: Iterator[None] | None = None  # the load or unload that talks to the shards
        self._is_in_load = False

    def run(self) -> AdapterCounts:
        for _ in range(self._num_steps):
            self._random.choices(
                [self._load, self._unload, self._call, self._end_call, self._die, self._return, self._work_on],
                [3, 2, 4, 3, 1, 2, 6],
            )[0]()
            self._check()
        while self.calls:
            self._end_call()
        for shard in self.shards:
            self._bring_up(shard)
        for name in NAMES:
            while self.registry.is_in_work(name):
                self._work_on()
            if self.registry.find(name) is not None:
                self.registry.remove(name)
        while self._work is not None or self.registry.next_unload() is not None:
            self._work_on()
            self._check()
        assert self.registry.wanted() == {}
        assert self.registry.num_bytes == 0
        assert all(not shard.held for shard in self.shards)
        return self.counts

    # ---- What happens.

    def _load(self) -> None:
        name = self._random.choice(NAMES)
        if self._work is not None or self.registry.is_in_work(name):
            return
        folder = BAD_FOLDER if self._random.random() < 0.15 else str(self._random.randrange(NUM_FOLDERS))
        in_place = self._random.random() < 0.5
        source = AdapterSource(folder, folder)
        was_there = self.registry.find(name) is not None
        try:
            self.registry.begin_load(name, source, in_place=in_place)
        except NameTaken:
            assert was_there
            assert not in_place
            return
        self.counts.loads += 1
        self.counts.in_place += was_there
        self._is_in_load = True
        self._work = self._load_everywhere(name, source)

    def _load_everywhere(self, name: str, source: AdapterSource) -> Iterator[None]:
        """Read the weights shard after shard, with room for other things between two shards."""
        before = self.registry.find(name)
        facts: AdapterFacts | None = None
        while True:
            lacking = [
                shard for shard in self.shards if shard.is_up and (facts is None or facts.digest not in shard.held)
            ]
            if not lacking:
                break
            found = None if source.folder == BAD_FOLDER else self._facts(source.folder)
            if found is None or (facts is not None and found.digest != facts.digest):
                self.counts.refusals += 1
                self.registry.fail_load(name, facts)
                after = self.registry.find(name)
                if before is not None and before.facts is not None and after is not None:
                    assert after.facts in (before.facts, None)  # withdrawn meanwhile, or as before
                return
            lacking[0].held.add(found.digest)
            if facts is None:
                facts = found
                self.registry.note_loaded(facts, source.folder)
            yield
        if facts is None:  # no shard is up
            self.registry.fail_load(name, None)
            return
        self.registry.finish_load(name, source, facts)
        found_entry = self.registry.find(name)
        assert found_entry is not None
        assert found_entry.facts is not None
        assert found_entry.facts.digest == facts.digest

    def _unload(self) -> None:
        name = self._random.choice(NAMES)
        if self.registry.is_in_work(name):
            return
        try:
            self.registry.remove(name)
        except UnknownAdapter:
            assert self.registry.find(name) is None
            return
        self.counts.unloads += 1
        assert self.registry.find(name) is None
        assert self.registry.acquire(name) is None

    def _call(self) -> None:
        name = self._random.choice(NAMES)
        adapter = self.registry.acquire(name)
        if adapter is None:
            self.counts.refused_calls += 1
            return
        self.counts.calls += 1
        self.calls.append(adapter)

    def _end_call(self) -> None:
        if self.calls:
            self.registry.release(self.calls.pop(self._random.randrange(len(self.calls))))

    def _die(self) -> None:
        shard = self._random.choice(self.shards)
        if shard.is_up:
            shard.is_up = False
            if self._random.random() < 0.5:  # else only the stream was lost, and the process holds its weights
                shard.held.clear()
            self.counts.deaths += 1
            self.counts.deaths_in_loads += self._is_in_load
            if self._random.random() < 0.3:
                folder = str(self._random.randrange(NUM_FOLDERS))
                self._content[folder] = self._random.randrange(NUM_FOLDERS)

    def _return(self) -> None:
        self._bring_up(self._random.choice(self.shards))

    def _bring_up(self, shard: Shard) -> None:
        """Restore what is wanted, as an engine loop does before it re-admits requests."""
        if shard.is_up:
            return
        shard.held &= self.registry.wanted().keys()
        for digest, folder in self.registry.wanted().items():
            if digest in shard.held:
                continue
            if self._facts(folder).digest == digest:
                shard.held.add(digest)
            else:
                self.counts.withdrawn += 1
                self.registry.withdraw(digest)
                lost = [adapter for adapter in self.calls if adapter.digest == digest]
                self.calls = [adapter for adapter in self.calls if adapter.digest != digest]
                for adapter in lost:  # which fail, and so end
                    self.registry.release(adapter)
        shard.is_up = True

    def _work_on(self) -> None:
        """Let the work at the shards go one step further, or begin with weights that nobody uses."""
        if self._work is not None:
            try:
                next(self._work)
            except StopIteration:
                self._work, self._is_in_load = None, False
            return
        digest = self.registry.next_unload()
        if digest is not None:
            assert all(adapter.digest != digest for adapter in self.calls)
            self._work = self._unload_everywhere(digest)

    def _unload_everywhere(self, digest: bytes) -> Iterator[None]:
        for shard in self.shards:
            shard.held.discard(digest)
            yield
        self.registry.finish_unload(digest)
        self.counts.freed += 1

    def _facts(self, folder: str) -> AdapterFacts:
        digest = bytes([self._content[folder]]) * 16
        return AdapterFacts(digest, 8, 1000 + digest[0], 4, ("q_proj",))

    # ---- What holds always.

    def _check(self) -> None:
        self.registry.check()
        needed = {adapter.digest for adapter in self.calls}
        needed |= {one.facts.digest for one in self.registry.listed() if one.facts is not None}
        for shard in self.shards:
            if shard.is_up:
                assert needed <= shard.held, "a digest is named or held, and a shard that serves lacks it"
        for name in NAMES:
            listed = self.registry.find(name)
            held = sum(adapter.name == name for adapter in self.calls)
            if listed is not None:
                assert listed.num_calls == held
