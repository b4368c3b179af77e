"""Which requests have their images on the shard (rule 33 in docs/wire.md).

A request with images that no cached block covers gets a slot when its images are on the shard and their lease runs. The
gate says which images the engine brings there next, so that the images of requests on their way, and of requests that
have not computed them yet, never take more bytes than the shard has set aside.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from textmill_router.request import GenerationRequest, RequestId
from textmill_router.scheduler.request_state import RequestState


class _Stage(Enum):
    """Where the images of a request are."""

    WANTED = "wanted"  # the engine brings them, or asks whether they are there
    READY = "ready"  # on the shard, until the lease ends
    SEATED = "seated"  # the request has a slot, which holds them


@dataclass(slots=True)
class _Entry:
    request: GenerationRequest
    stage: _Stage
    lease_end_s: float = 0.0


class MediaGate:
    """The images of one epoch. `max_bytes` is what the shard has set aside, `row_bytes` the bytes of one row."""

    def __init__(self, *, max_bytes: int, row_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._row_bytes = row_bytes
        self._entries: dict[RequestId, _Entry] = {}
        self._holders: Counter[bytes] = Counter()  # requests of the gate that have an image, by digest
        self._num_bytes = 0  # of the images that some request of the gate has
        self._wanted: list[GenerationRequest] = []  # since the last look of the engine
        self._is_full = False  # a request of this round of planning found no room, so that none behind it gets any

    @property
    def num_bytes(self) -> int:
        """The bytes of the images that requests of the gate have."""
        return self._num_bytes

    def begin_round(self) -> None:
        """Begin a round of planning, which asks for the requests in their order."""
        self._is_full = False

    def may_seat(self, state: RequestState, num_cached_tokens: int, now: float) -> bool:
        """Whether the request may get a slot now. If not, its images are brought to the shard once there is room."""
        if not state.request.media or all(span.end <= num_cached_tokens for span in state.media_spans):
            return True
        entry = self._entries.get(state.request_id)
        if entry is None:
            self._enter(state.request)
            return False
        if entry.stage is _Stage.READY and now >= entry.lease_end_s:
            entry.stage = _Stage.WANTED
            self._wanted.append(entry.request)
        return entry.stage is _Stage.READY

    def seat(self, state: RequestState) -> None:
        """Note that the request gets a slot. A request whose images are all cached needs them no more."""
        entry = self._entries.get(state.request_id)
        if entry is None:
            return
        if state.num_computed_tokens >= state.media_end:
            self.release(state.request_id)
        else:
            entry.stage = _Stage.SEATED

    def release(self, request_id: RequestId) -> None:
        """Count the images of a request no more: it has computed them, or leaves. Unknown requests are ignored."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        for digest, num_bytes in self._sizes(entry.request).items():
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]
                self._num_bytes -= num_bytes

    def bring(self, request_id: RequestId, lease_end_s: float) -> None:
        """Note that all images of a request are on the shard, with leases that run until this time."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.stage is _Stage.WANTED:
            entry.stage = _Stage.READY
            entry.lease_end_s = lease_end_s

    def take_wanted(self) -> list[GenerationRequest]:
        """Return the requests whose images the engine must bring, or ask for, since the last call."""
        wanted, self._wanted = self._wanted, []
        return [request for request in wanted if request.request_id in self._entries]

    @property
    def has_wanted(self) -> bool:
        """Whether `take_wanted` has something to return."""
        return bool(self._wanted)

    def can_ever_hold(self, request: GenerationRequest) -> bool:
        """Whether the images of a request fit while no other request has any."""
        return sum(self._sizes(request).values()) <= self._max_bytes

    def _enter(self, request: GenerationRequest) -> None:
        if self._is_full:
            return
        sizes = self._sizes(request)
        num_new = sum(num_bytes for digest, num_bytes in sizes.items() if digest not in self._holders)
        if self._num_bytes + num_new > self._max_bytes:
            self._is_full = True
            return
        self._num_bytes += num_new
        self._holders.update(sizes.keys())
        self._entries[request.request_id] = _Entry(request, _Stage.WANTED)
        self._wanted.append(request)

    def _sizes(self, request: GenerationRequest) -> dict[bytes, int]:
        """The bytes of each image of a request, by digest. Equal digests name equal images."""
        return {item.digest: item.num_bytes(self._row_bytes) for item in request.media}
