"""The scheduler with the model shard and images in prompts (`ImageWorld`), and three planted bugs that must be noticed.

Beside what `test_scheduler_properties.py` says of each run: no request is admitted without an image that it needs, no
slot reads a block of another image, and images that requests need never take more bytes than the shard has.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.scheduler.media_gate import MediaGate
from textmill_router.scheduler.request_state import RequestState

from tests.fakes.image_world import MEDIA_BYTES, ImageWorld
from tests.fakes.scheduler_world import WorldCounts

NUM_FIXED_RUNS = 80
NUM_BUG_RUNS = 60


def test_prompts_with_images_get_their_undisturbed_text():
    counts = WorldCounts()
    worlds = [ImageWorld(seed, num_callers=1 + seed % 2) for seed in range(NUM_FIXED_RUNS)]
    for world in worlds:
        counts.add(world.run())
    # The runs were not quiet.
    assert sum(world.num_pictured for world in worlds) > 500
    assert sum(world.num_brought for world in worlds) > 500
    assert sum(world.num_kept for world in worlds) > 100
    assert sum(world.num_full for world in worlds) > 10
    assert max(world.most_bytes for world in worlds) == MEDIA_BYTES
    assert counts.deaths > 5
    assert counts.preemptions > 10
    assert counts.hit_tokens > 500
    assert counts.followers > 10


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(min_value=1000, max_value=2**32))
def test_any_world_with_images_ends_well(seed: int):
    ImageWorld(seed).run()


# ---- Planted bugs.


class ForgetsLeases(MediaGate):
    """Takes images for present for ever, once they were brought."""

    def bring(self, request_id, lease_end_s):  # type: ignore[no-untyped-def]
        super().bring(request_id, lease_end_s + 1e9)


class ForgetsImages(MediaGate):
    """Admits a request whose images are not there."""

    def may_seat(self, state: RequestState, num_cached_tokens: int, now: float) -> bool:
        super().may_seat(state, num_cached_tokens, now)
        return True


def plant(world: ImageWorld, gate_type: type[MediaGate]) -> None:
    """Let each epoch of the world's scheduler have this gate."""

    class Planted(world.scheduler.epoch_type):  # type: ignore[name-defined,misc]
        def __init__(self, pool, *rest) -> None:  # type: ignore[no-untyped-def]
            super().__init__(pool, *rest)
            self.media = gate_type(max_bytes=pool.media_cache_bytes, row_bytes=pool.media_row_bytes)

    world.scheduler.epoch_type = Planted
    world.scheduler.end_epoch(0.0)
    world._births()


@pytest.mark.parametrize("gate_type", [ForgetsLeases, ForgetsImages])
def test_planted_bug_of_the_gate_makes_the_run_fail(gate_type: type[MediaGate]):
    with pytest.raises(AssertionError):  # noqa: PT012 - one of the runs must fail
        for seed in range(NUM_BUG_RUNS):
            world = ImageWorld(seed)
            plant(world, gate_type)
            world.run()


def test_planted_bug_of_the_hashes_makes_the_run_fail(monkeypatch: pytest.MonkeyPatch):
    """Blocks are hashed by their ids alone, so that all images look alike."""
    monkeypatch.setattr(RequestState, "packed_media", lambda state, start, end: b"")
    with pytest.raises(AssertionError):  # noqa: PT012 - one of the runs must fail
        for seed in range(NUM_BUG_RUNS):
            ImageWorld(seed).run()
