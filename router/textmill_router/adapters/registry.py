"""The registry of adapters: which name stands for which weights, which weights are in the shards, and who holds them.

Pure and synchronous. `engine/adapter_loads.py` does the I/O: it asks the registry for work, sends the shards a message,
and reports the outcome here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from textmill_router.request import Adapter


class AdapterState(StrEnum):
    """What a name stands for. Later versions may also keep weights outside the shards' memory."""

    REGISTERED = "registered"  # in no shard yet
    LOADING = "loading"  # the first load is under way
    READY = "ready"  # in every shard that serves


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where an adapter comes from. Clients see `root`, the name of the folder or of the repository, and no path."""

    folder: str
    root: str
    expected_digest: bytes = b""  # of weights that were loaded from the folder before; empty: any


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a shard has found in the files of an adapter. Names and units are those of `AdapterInfo` in shard.proto."""

    digest: bytes
    max_rank: int
    num_bytes: int
    num_modules: int
    target_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """One name, as lists show it. `facts` is None while no weights stand behind the name."""

    name: str
    root: str
    state: AdapterState
    facts: AdapterFacts | None
    num_calls: int  # that run or wait under this name
    num_requests: int  # since the name was given


class NameTaken(Exception):
    """The name stands for an adapter already."""


class UnknownAdapter(Exception):
    """No adapter has this name."""


@dataclass(slots=True)
class _Entry:
    """One name. While `is_in_work`, a load under this name is under way, and no other work on the name may begin."""

    source: AdapterSource
    digest: bytes | None = None
    is_in_work: bool = False
    num_requests: int = 0


@dataclass(slots=True)
class _Weights:
    """The weights of one digest, which the shards hold."""

    facts: AdapterFacts
    folder: str
    num_names: int = 0
    num_holders: int = 0
    num_loads: int = 0  # under way; between the first shard's answer and the last one's nobody else keeps the weights
    is_withdrawn: bool = False  # a shard could not load the weights again, so the requests that hold them fail

    @property
    def is_used(self) -> bool:
        return self.num_names > 0 or self.num_holders > 0 or self.num_loads > 0


class AdapterRegistry:
    """The owner of names, weights and holders.

    A call asks for a name once, with `acquire`, and keeps the digest that it got until `release`, whatever becomes of
    the name meanwhile. Weights leave the shards when no name, no call and no load needs them (`next_unload`).
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._weights: dict[bytes, _Weights] = {}
        self._idle: dict[bytes, None] = {}  # digests that nobody uses, in the order in which they became idle
        self._num_calls: Counter[str] = Counter()  # by name

    # ---- Calls.

    def acquire(self, name: str) -> Adapter | None:
        """Return the adapter of a name, which the caller holds until `release`, or None for a name without weights."""
        entry = self._entries.get(name)
        if entry is None or entry.digest is None:
            return None
        self._weights[entry.digest].num_holders += 1
        self._num_calls[name] += 1
        return Adapter(name, entry.digest)

    def release(self, adapter: Adapter) -> None:
        """Give back what `acquire` gave."""
        weights = self._weights[adapter.digest]
        assert weights.num_holders > 0, adapter
        weights.num_holders -= 1
        self._num_calls[adapter.name] -= 1
        if not self._num_calls[adapter.name]:
            del self._num_calls[adapter.name]
        self._note_use(adapter.digest)

    def note_requests(self, name: str, count: int) -> None:
        """Count requests that were admitted under a name."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.num_requests += count

    # ---- Names.

    def register(self, name: str, source: AdapterSource) -> None:
        """Give a name to an adapter that no shard has read yet. Raises NameTaken."""
        if name in self._entries:
            raise NameTaken(name)
        self._entries[name] = _Entry(source)

    def is_in_work(self, name: str) -> bool:
        """Whether a load under this name is under way, so that further work on the name must wait."""
        entry = self._entries.get(name)
        return entry is not None and entry.is_in_work

    def begin_load(self, name: str, source: AdapterSource, *, in_place: bool = False) -> None:
        """Begin a load. The name must not be in work.

        Raises NameTaken where the name has weights, unless `in_place` says that new weights may take their place.
        """
        assert not self.is_in_work(name), name
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(source)
        elif entry.digest is not None and not in_place:
            raise NameTaken(name)
        entry.is_in_work = True

    def note_loaded(self, facts: AdapterFacts, folder: str) -> None:
        """Note that a first shard has read the weights. They stay until `finish_load` or `fail_load` ends the load."""
        weights = self._weights.setdefault(facts.digest, _Weights(facts, folder))
        weights.num_loads += 1
        self._note_use(facts.digest)

    def finish_load(self, name: str, source: AdapterSource, facts: AdapterFacts) -> None:
        """Let the name stand for weights that every shard has now. Calls that hold other weights keep them."""
        entry = self._entries[name]
        assert entry.is_in_work, name
        weights, before = self._weights[facts.digest], entry.digest
        weights.num_names += 1
        weights.num_loads -= 1
        weights.folder = source.folder
        weights.is_withdrawn = False
        entry.source, entry.digest, entry.is_in_work = source, facts.digest, False
        if before is not None:
            self._weights[before].num_names -= 1
            self._note_use(before)

    def fail_load(self, name: str, facts: AdapterFacts | None) -> None:
        """End a load without a new meaning of the name. `facts` are those of `note_loaded`, if it was called.

        A name that this load has brought, and a name that was registered, go.
        """
        entry = self._entries[name]
        assert entry.is_in_work, name
        entry.is_in_work = False
        if entry.digest is None:
            del self._entries[name]
        if facts is not None:
            self._weights[facts.digest].num_loads -= 1
            self._note_use(facts.digest)

    def remove(self, name: str) -> bytes:
        """Take a name away, and return the digest that it had. Calls keep their weights. Raises UnknownAdapter.

        The name must not be in work.
        """
        assert not self.is_in_work(name), name
        entry = self._entries.get(name)
        if entry is None or entry.digest is None:
            raise UnknownAdapter(name)
        del self._entries[name]
        self._weights[entry.digest].num_names -= 1
        self._note_use(entry.digest)
        return entry.digest

    def withdraw(self, digest: bytes) -> tuple[str, ...]:
        """Take away all names of weights that a shard could not load again, and return the names.

        The caller fails the requests that hold the weights.
        """
        names = tuple(name for name, entry in self._entries.items() if entry.digest == digest)
        for name in names:
            entry = self._entries[name]
            self._weights[digest].num_names -= 1
            entry.digest = None
            if not entry.is_in_work:  # a load under way keeps its entry
                del self._entries[name]
        self._weights[digest].is_withdrawn = True
        self._note_use(digest)
        return names

    # ---- Weights.

    def wanted(self) -> dict[bytes, str]:
        """Return the folder of each digest that has a name or a holder, which every shard must have to serve."""
        return {
            digest: weights.folder
            for digest, weights in self._weights.items()
            if weights.num_names > 0 or (weights.num_holders > 0 and not weights.is_withdrawn)
        }

    def is_leaving(self, digest: bytes) -> bool:
        """Whether weights without a name are still held, or still in a shard."""
        return digest in self._weights and not self._weights[digest].num_names

    def next_unload(self) -> bytes | None:
        """Return the digest of weights that nobody uses any more, or None. Call `finish_unload` when they are gone.

        The caller begins no load and reports none between the two calls.
        """
        return next(iter(self._idle), None)

    def finish_unload(self, digest: bytes) -> None:
        """Forget weights that the shards have given up."""
        assert not self._weights[digest].is_used, digest
        del self._weights[digest]
        del self._idle[digest]

    def _note_use(self, digest: bytes) -> None:
        if self._weights[digest].is_used:
            self._idle.pop(digest, None)
        else:
            self._idle[digest] = None

    # ---- Lists.

    @property
    def is_empty(self) -> bool:
        """Whether there is no name, loaded or not."""
        return not self._entries

    @property
    def num_loaded(self) -> int:
        """The number of names that calls can ask for."""
        return sum(entry.digest is not None for entry in self._entries.values())

    @property
    def num_bytes(self) -> int:
        """The bytes of all weights that a shard holds, as the shards count them."""
        return sum(weights.facts.num_bytes for weights in self._weights.values())

    def registered(self) -> list[tuple[str, AdapterSource]]:
        """Return the names that no shard has read yet, with their sources."""
        return [
            (name, entry.source)
            for name, entry in self._entries.items()
            if entry.digest is None and not entry.is_in_work
        ]

    def loaded(self) -> list[tuple[str, str, bytes]]:
        """Return the name, the folder and the digest of each adapter that calls can ask for."""
        return [
            (name, entry.source.folder, entry.digest)
            for name, entry in self._entries.items()
            if entry.digest is not None
        ]

    def find(self, name: str) -> ListedAdapter | None:
        """Return a name with its facts, or None for an unknown name."""
        entry = self._entries.get(name)
        return None if entry is None else self._listed(name, entry)

    def listed(self) -> Sequence[ListedAdapter]:
        """Return all names with their facts, in the order in which the names were given."""
        return [self._listed(name, entry) for name, entry in self._entries.items()]

    def _listed(self, name: str, entry: _Entry) -> ListedAdapter:
        if entry.digest is not None:
            state = AdapterState.READY
        else:
            state = AdapterState.LOADING if entry.is_in_work else AdapterState.REGISTERED
        facts = None if entry.digest is None else self._weights[entry.digest].facts
        return ListedAdapter(name, entry.source.root, state, facts, self._num_calls[name], entry.num_requests)

    def check(self) -> None:
        """Assert that names and holders agree with the counts of the weights. For tests."""
        names = Counter(entry.digest for entry in self._entries.values() if entry.digest is not None)
        for digest, weights in self._weights.items():
            assert weights.num_names == names[digest], digest
            assert weights.num_holders >= 0, digest
            assert weights.num_loads >= 0, digest
            assert weights.is_used == (digest not in self._idle), digest
        assert names.keys() <= self._weights.keys()
        assert sum(weights.num_holders for weights in self._weights.values()) == self._num_calls.total()
