"""Rule 33 through the step loop: slots wait for the rows of their images, and the tower runs when a slot gets there."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from textmill_shard.engine.media_desk import MediaDesk, TowerHangs
from textmill_shard.engine.media_store import NoMediaRoom
from textmill_shard.engine.session import EndReason, StreamEnd
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.media import MediaFault
from textmill_shard.slots.plan import Admit, Budget, SlotErrorCode, StepResult
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import RopeRow

from tests.fakes.step_harness import (
    VOCAB_SIZE,
    WAIT_S,
    PrefixRunner,
    Shard,
    admit,
    drop,
    greedy,
    tokens_by_slot,
)
from tests.fakes.step_media import (
    FORMULA_FACTS,
    PLACEHOLDER,
    SHARD_FACTS,
    FormulaTower,
    image_digest,
    media_desk,
    put_image,
    with_images,
)

IMAGE = (11, 12, 13, 14, 15)
PROMPT = [1, 2, 3, *[PLACEHOLDER] * 5, 4]
AS_READ = [1, 2, 3, *IMAGE, 4]  # what the formula reads for PROMPT with IMAGE
SMALL = Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=2)
ON_EITHER_DEVICE = pytest.mark.parametrize("runs_beside_steps", [True, False], ids=["as on a CPU", "as on a GPU"])


@contextmanager
def shard_with(
    tower: FormulaTower, *, runs_beside_steps: bool = True, gate: threading.Semaphore | None = None
) -> Iterator[tuple[Shard, MediaDesk]]:
    shards: list[Shard] = []
    desk = media_desk(
        tower,
        runs_beside_steps=runs_beside_steps,
        on_encoded=lambda: shards[0].status.report_media_encode(),
    )
    shards.append(Shard(facts=SHARD_FACTS, media=desk, gate=gate))
    with shards[0] as shard:
        yield shard, desk
        tower.gate.set()


def admit_image(slot: int, prompt: Sequence[int] = PROMPT, *images: tuple[int, Sequence[int]], **rest: object):  # type: ignore[no-untyped-def]
    """Return an admit of a prompt, by default PROMPT with IMAGE."""
    return with_images(admit(slot, prompt, **rest), *(images or ((3, IMAGE),)))  # type: ignore[arg-type]


def errors_of(results: Sequence[StepResult]) -> list[tuple[int, SlotErrorCode, str]]:
    return [(error.slot, error.code, error.message) for result in results for error in result.errors]


@ON_EITHER_DEVICE
@pytest.mark.parametrize("chunk", [64, 2])
def test_rows_stand_in_the_places_of_placeholders_whole_and_in_chunks(chunk: int, runs_beside_steps: bool) -> None:
    tower = FormulaTower()
    with shard_with(tower, runs_beside_steps=runs_beside_steps) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0), admit(1, [9, 9])], budget=replace(SMALL, max_chunk_tokens=chunk))
        tokens = shard.run_to_end(0, 1)
    assert tokens == {0: greedy(AS_READ, 4), 1: greedy([9, 9], 4)}
    assert tower.encoded == [list(IMAGE)]
    assert shard.status.heartbeat().num_media_encodes == 1


def test_a_slot_prefills_up_to_its_image_while_the_tower_runs_and_others_go_on() -> None:
    tower = FormulaTower()
    tower.gate.clear()
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0), admit(1, [9, 9], max_new=6)])
        assert shard.run_to_end(1) == {1: greedy([9, 9], 6)}
        assert tower.began.wait(WAIT_S)
        computed = [
            count
            for result in shard.results
            for slot, count in zip(result.prefill_slots.tolist(), result.prefill_computed.tolist(), strict=True)
            if slot == 0
        ]
        assert computed == [3]
        tower.gate.set()
        assert shard.run_to_end(0)[0] == greedy(AS_READ, 4)


def test_the_tower_does_not_run_before_a_step_could_reach_the_image() -> None:
    tower, gate = FormulaTower(), threading.Semaphore(0)
    with shard_with(tower, runs_beside_steps=False, gate=gate) as (shard, desk):
        put_image(desk, IMAGE)
        far = [5] * 20
        shard.send(
            admits=[admit_image(0, [*far, *PROMPT], (23, IMAGE))],
            budget=Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=8),
        )
        shard.hold()
        assert tower.encoded == []
        shard.step()  # 8 tokens are computed, and the image is at 23
        shard.hold()
        assert tower.encoded == []
        shard.step()
        shard.hold()
        assert tower.encoded == [list(IMAGE)]
        gate.release(100)
        assert shard.run_to_end(0)[0] == greedy([*far, *AS_READ], 4)


@pytest.mark.parametrize(("cached", "num_encoded"), [(4, 1), (8, 0)])
def test_a_hit_may_end_inside_an_image_and_a_covered_image_is_not_encoded(cached: int, num_encoded: int) -> None:
    """The second request shares the blocks of the first one, whose image the store has given up meanwhile."""
    tower = FormulaTower()
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0, max_new=1)])
        shard.run_to_end(0)
        tower.encoded.clear()
        desk.store.forget(image_digest(IMAGE))
        if num_encoded:
            put_image(desk, IMAGE)
        blocks = [*range(cached // 4), 20, 21, 22, 23]
        shard.send(admits=[admit_image(1, cached=cached, blocks=blocks)])
        assert shard.run_to_end(1)[1] == greedy(AS_READ, 4)
    assert len(tower.encoded) == num_encoded


def test_images_are_encoded_once_for_all_requests_that_have_them() -> None:
    tower = FormulaTower()
    with shard_with(tower) as (shard, desk):
        other = (7, 7)
        put_image(desk, IMAGE)
        put_image(desk, other)
        both = [*PROMPT, *[PLACEHOLDER] * 2]
        shard.send(admits=[admit_image(0), admit_image(1, both, (3, IMAGE), (9, other))])
        tokens = shard.run_to_end(0, 1)
        assert tokens == {0: greedy(AS_READ, 4), 1: greedy([*AS_READ, *other], 4)}
        shard.send(admits=[admit_image(2)])
        shard.run_to_end(2)
    assert tower.encoded == [list(IMAGE), list(other)]


def test_an_image_in_two_places_of_a_prompt_is_read_twice() -> None:
    tower = FormulaTower()
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0, [*PROMPT, *PROMPT], (3, IMAGE), (12, IMAGE))], budget=SMALL)
        assert shard.run_to_end(0)[0] == greedy([*AS_READ, *AS_READ], 4)
    assert len(tower.encoded) == 1


@ON_EITHER_DEVICE
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MediaFault("the grid does not fit"), "the grid does not fit"),
        (RuntimeError("shape"), "the model could not compute an image: RuntimeError: shape"),
        (torch.OutOfMemoryError("none left"), "the model could not compute an image: OutOfMemoryError: none left"),
    ],
)
def test_rule_19_a_tower_that_fails_harms_the_requests_of_the_image_alone(
    error: Exception, message: str, runs_beside_steps: bool
) -> None:
    tower = FormulaTower()
    tower.raises = lambda pixels: error if pixels == list(IMAGE) else None
    good = (21, 22)
    with shard_with(tower, runs_beside_steps=runs_beside_steps) as (shard, desk):
        put_image(desk, IMAGE)
        put_image(desk, good)
        beside = [PLACEHOLDER, PLACEHOLDER, 6]
        shard.send(admits=[admit_image(0), admit_image(1), admit_image(2, beside, (0, good)), admit(3, [9])])
        tokens = shard.run_to_end(0, 1, 2, 3)
        assert tokens == {2: greedy([*good, 6], 4), 3: greedy([9], 4)}
        assert errors_of(shard.results) == [(slot, SlotErrorCode.MEDIA, message) for slot in (0, 1)]
        # The image may be tried again, in the same slot.
        tower.raises = lambda pixels: None
        put_image(desk, IMAGE)
        shard.results.clear()
        shard.send(admits=[admit_image(0, request_id=7)])
        assert shard.run_to_end(0)[0] == greedy(AS_READ, 4)


def test_rule_33_rows_that_are_not_as_many_as_announced_are_a_fault() -> None:
    tower = FormulaTower()
    tower.num_rows = lambda num_pixels: num_pixels - 1
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0)])
        shard.run_to_end(0)
        message = "the model makes 4 rows of the image, and 5 were announced"
        assert errors_of(shard.results) == [(0, SlotErrorCode.MEDIA, message)]


def test_rule_33_placeholders_beyond_the_rows_are_a_fault() -> None:
    with shard_with(FormulaTower()) as (shard, desk):
        put_image(desk, IMAGE)
        request = admit_image(0)
        [span] = request.media
        shard.send(admits=[replace(request, media=(replace(span, first_row=1),))])
        shard.run_to_end(0)
        message = "the prompt has placeholders for 6 rows of an image, and the model makes 5"
        assert errors_of(shard.results) == [(0, SlotErrorCode.MEDIA, message)]


def test_rule_33_an_image_that_is_gone_is_a_fault_of_its_request() -> None:
    with shard_with(FormulaTower()) as (shard, _):
        shard.send(admits=[admit_image(0), admit(1, [9])])
        assert shard.run_to_end(0, 1) == {1: greedy([9], 4)}
        assert [(slot, code) for slot, code, _ in errors_of(shard.results)] == [(0, SlotErrorCode.MEDIA)]


@pytest.mark.parametrize("is_encoded", [True, False])
def test_grids_that_do_not_fit_the_prompt_are_a_fault_of_its_request(is_encoded: bool) -> None:
    message = "the grid has 4 patches, the prompt 5 placeholders"

    def rope(request: Admit) -> RopeRow:
        if request.request_id == 100:
            raise MediaFault(message)
        return RopeRow(np.tile(np.arange(len(request.prompt_ids)), (3, 1)), delta=0)

    desk = media_desk(FormulaTower())
    with Shard(facts=SHARD_FACTS, media=desk, rope=rope) as shard:
        put_image(desk, IMAGE)
        if is_encoded:
            shard.send(admits=[admit_image(2)])
            shard.run_to_end(2)
        shard.results.clear()
        shard.send(admits=[admit_image(0), admit(1, [9])])
        assert shard.run_to_end(0, 1) == {1: greedy([9], 4)}
        assert errors_of(shard.results) == [(0, SlotErrorCode.MEDIA, message)]
        assert not any(0 in result.prefill_slots for result in shard.results)
        shard.results.clear()
        shard.send(admits=[admit(0, [8])])
        assert shard.run_to_end(0) == {0: greedy([8], 4)}


def test_a_slot_keeps_its_image_until_the_image_is_computed_or_the_slot_is_dropped() -> None:
    tower = FormulaTower()
    tower.gate.clear()
    now_s = [0.0]
    desk = media_desk(tower, max_bytes=20, clock=lambda: now_s[0])
    with Shard(facts=SHARD_FACTS, media=desk) as shard:
        put_image(desk, IMAGE)
        now_s[0] = 1000.0  # the lease is over
        shard.send(admits=[admit_image(0)])
        shard.next_result()  # up to the image
        with pytest.raises(NoMediaRoom):
            put_image(desk, (1, 2, 3, 4, 5))
        shard.send(drops=[drop(0)])
        shard.next_result()
        shard.send(admits=[admit(1, [9])])  # a turn of the loop, in which the desk sees that the slot is free
        shard.run_to_end(1)
        put_image(desk, (1, 2, 3, 4, 5))
        tower.gate.set()
        now_s[0] = 2000.0
        request = with_images(admit(2, PROMPT), (3, (1, 2, 3, 4, 5)))
        shard.send(admits=[request])
        assert shard.run_to_end(2)[2] == greedy([1, 2, 3, 1, 2, 3, 4, 5, 4], 4)
        put_image(desk, IMAGE)  # the image is computed, so that its room is free


def test_images_that_are_computed_leave_their_room_at_once() -> None:
    """Ten images come one after the other, of which the store holds two, in less time than a lease."""
    desk = media_desk(FormulaTower(), max_bytes=40, clock=lambda: 0.0)
    with Shard(facts=SHARD_FACTS, media=desk) as shard:
        for number in range(10):
            image = (number, 1, 2, 3, 4)
            put_image(desk, image)
            shard.results.clear()
            shard.send(admits=[with_images(admit(0, PROMPT, max_new=2), (3, image))])
            assert shard.run_to_end(0)[0] == greedy([1, 2, 3, *image, 4], 2)


def test_rule_21_a_new_epoch_ends_leases_and_pins_and_keeps_the_images() -> None:
    tower = FormulaTower()
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0, max_new=30)])
        shard.next_result()
        shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        assert desk.store.kept([image_digest(IMAGE)]) == (image_digest(IMAGE),)
        shard.send(admits=[admit_image(0)])
        assert shard.run_to_end(0)[0] == greedy(AS_READ, 4)
        shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        desk.store.reserve(desk.store.max_bytes)  # nothing holds the image any more
    assert len(tower.encoded) == 1


def test_rule_17_placeholders_have_no_log_probability() -> None:
    """Targets at 1 .. 8; those at 3 .. 7 are placeholders, of which one id lies outside the vocabulary."""
    prompt = [1, 2, 3, *[PLACEHOLDER] * 5, 4]
    request = with_images(admit(0, prompt, prompt_logprobs_from=1, prompt_top_n=2, max_new=1), (3, IMAGE))
    ids = request.prompt_ids.copy()
    ids[4] = VOCAB_SIZE + 3
    with shard_with(FormulaTower()) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[replace(request, prompt_ids=ids)], budget=SMALL)
        shard.run_to_end(0)
        assert errors_of(shard.results) == []
        pieces = [piece for result in shard.results for piece in result.prompt_logprobs]
    logprobs = np.concatenate([piece.logprobs for piece in pieces])
    counts = np.concatenate([piece.top_counts for piece in pieces])
    assert np.isnan(logprobs).tolist() == [False, False, *[True] * 5, False]
    assert (counts > 0).tolist() == [True, True, *[False] * 5, True]
    assert sum(len(piece.top_ids) for piece in pieces) == counts.sum()


class TwoChoices(PrefixRunner):
    """A model whose best token is always the placeholder, and whose second best is 7."""

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        logits_NV = torch.zeros(len(batch.logit_rows_N), VOCAB_SIZE)
        logits_NV[:, PLACEHOLDER], logits_NV[:, 7] = 5.0, 4.0
        return ForwardOutput(logits_NV=logits_NV, hidden_TD=None)


@pytest.mark.parametrize(("has_image", "expected"), [(True, PLACEHOLDER), (False, 7)])
def test_placeholders_never_count_in_penalties(has_image: bool, expected: int) -> None:
    desk = media_desk(FormulaTower())
    with Shard(facts=SHARD_FACTS, media=desk, runner=TwoChoices()) as shard:
        put_image(desk, IMAGE)
        request = admit(0, PROMPT, max_new=1, sampling=SamplingParams(repetition_penalty=2.0))
        shard.send(admits=[with_images(request, (3, IMAGE)) if has_image else request])
        assert shard.run_to_end(0) == {0: [expected]}


def test_a_text_beside_images_and_after_them_is_that_of_a_model_without_images() -> None:
    tower = FormulaTower()
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit(1, [3, 4, 5], max_new=9), admit_image(0)], budget=SMALL)
        assert shard.run_to_end(0, 1)[1] == greedy([3, 4, 5], 9)
    assert tokens_by_slot(shard.results)[0] == greedy(AS_READ, 4)
    plain = [batch for batch in shard.runner.batches if batch.media is None]
    assert all(batch.rope_positions_3T is None and batch.span_ends_T is None for batch in plain)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
def test_the_thread_of_the_tower_gives_way_to_the_steps() -> None:
    """Niceness is relative, because nobody but root may lower the niceness of a process that has been started nice."""
    found: list[int] = []
    tower = FormulaTower()
    tower.raises = lambda pixels: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    with shard_with(tower) as (shard, desk):
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0)])
        assert shard.run_to_end(0)[0] == greedy(AS_READ, 4)
    assert found == [min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)]


def test_a_loop_that_ends_waits_for_no_tower() -> None:
    tower = FormulaTower()
    tower.gate.clear()
    desk = media_desk(tower)
    with Shard(facts=SHARD_FACTS, media=desk) as shard:
        put_image(desk, IMAGE)
        shard.send(admits=[admit_image(0)])
        assert tower.began.wait(WAIT_S)
    assert FORMULA_FACTS.kinds == desk.facts.kinds
    tower.gate.set()


@contextmanager
def shard_with_a_stuck_tower(
    now_s: list[float], on_encoded: Callable[[], object] = lambda: None
) -> Iterator[tuple[Shard, MediaDesk, FormulaTower]]:
    """The tower is at IMAGE, for which slot 0 waits. Five numbers have a limit of 60 + 30 x 5 x 2 seconds."""
    tower = FormulaTower()
    tower.gate.clear()
    desk = media_desk(tower, tower_clock=lambda: now_s[0], encode_s_per_element=2.0, on_encoded=on_encoded)
    with Shard(facts=SHARD_FACTS, media=desk) as shard:
        try:
            put_image(desk, IMAGE)
            shard.send(admits=[admit_image(0)])
            assert tower.began.wait(WAIT_S)
            yield shard, desk, tower
        finally:
            tower.gate.set()


def test_a_tower_that_hangs_fails_the_requests_of_its_image_behind_a_limit_that_grows_with_the_image() -> None:
    now_s = [0.0]
    with shard_with_a_stuck_tower(now_s) as (shard, desk, tower):
        now_s[0] = 360.0
        shard.send(admits=[admit(1, [9, 9])])
        assert shard.run_to_end(1) == {1: greedy([9, 9], 4)}
        assert errors_of(shard.results) == []
        now_s[0] = 360.5
        shard.run_to_end(0)
        fault = (SlotErrorCode.MEDIA, "the model has not computed an image within 360 s")
        assert errors_of(shard.results) == [(0, *fault)]
        # The image that hangs may come again and fails at once; text goes on.
        put_image(desk, IMAGE)
        shard.results.clear()
        shard.send(admits=[admit_image(0, request_id=7), admit(1, [8], request_id=8)])
        assert shard.run_to_end(0, 1) == {1: greedy([8], 4)}
        assert errors_of(shard.results) == [(0, *fault)]
        assert tower.encoded == []


def test_a_shard_whose_tower_hangs_ends_when_another_image_needs_the_tower() -> None:
    now_s = [0.0]
    with shard_with_a_stuck_tower(now_s) as (shard, desk, _):
        now_s[0] = 361.0
        shard.run_to_end(0)
        put_image(desk, (7, 8))
        shard.send(admits=[with_images(admit(1, [PLACEHOLDER, PLACEHOLDER, 6]), (0, (7, 8)))])
        while not isinstance(item := shard.next_item(), StreamEnd):
            assert not isinstance(item, StepResult) or not item.errors
        assert item.reason is EndReason.FAILED
        assert "another image waits" in item.message
    assert isinstance(shard.error, TowerHangs)


def test_a_tower_that_comes_back_late_computes_the_next_image() -> None:
    now_s, came_back = [0.0], threading.Event()
    with shard_with_a_stuck_tower(now_s, on_encoded=came_back.set) as (shard, desk, tower):
        now_s[0] = 361.0
        shard.run_to_end(0)
        tower.gate.set()
        assert came_back.wait(WAIT_S)
        put_image(desk, (7, 8))
        shard.send(admits=[with_images(admit(2, [PLACEHOLDER, PLACEHOLDER, 6]), (0, (7, 8)))])
        assert shard.run_to_end(2)[2] == greedy([7, 8, 6], 4)
    assert shard.error is None
