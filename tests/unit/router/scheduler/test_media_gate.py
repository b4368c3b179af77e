"""Rule 33: a request with images gets its slot when the shard holds its images, and the images never take too much."""

import pytest
from textmill_router.request import FailureCode
from textmill_router.scheduler.plan import Budget, ShardPool
from textmill_router.scheduler.scheduler import DoesNotFit

from tests.fakes.media_items import ROW_BYTES, make_image
from tests.fakes.scheduler_hand import BUDGET, ENDED, Hand, make_pool

IMAGE = 9
LEASE_S = 1000.0
NOW_S = 100.0  # of the hand


class ImageHand(Hand):
    """A scheduler of a model with images, whose shard sets 80 bytes aside: 20 rows."""

    media_bytes = 80

    def begin(self, *, num_blocks: int = 64, num_slots: int = 4):  # type: ignore[no-untyped-def]
        pool = make_pool(num_blocks=num_blocks, num_slots=num_slots)
        changed = {name: getattr(pool, name) for name in ShardPool.__dataclass_fields__}
        changed |= {"media_cache_bytes": self.media_bytes, "media_row_bytes": ROW_BYTES, **self.facts}
        self._num_epochs += 1
        self.plans = []
        return self._keep(self.scheduler.begin_epoch(ShardPool(**changed), float(self._num_epochs)))

    def __init__(self, *, budget: Budget = BUDGET, **facts: bool) -> None:
        self.facts = facts
        super().__init__(budget=budget, num_blocks=64)

    def wanted(self) -> list[int]:
        """Return the requests whose images are wanted since the last call."""
        return [int(request.request_id) for request in self.scheduler.take_wanted_media()]

    def bring(self, request_id: int, lease_end_s: float = LEASE_S) -> None:
        self.scheduler.on_media(request_id, lease_end_s)  # type: ignore[arg-type]
        self.tick()

    def picture(self, name: str, num_rows: int = 6, *, text: tuple[int, ...] = (1, 2), **wishes: object) -> int:
        """Submit a prompt with an image behind some text, and let the scheduler plan."""
        prompt = [*text, *[IMAGE] * num_rows, 3]
        request_id = self.submit(prompt, media=(make_image(name, len(text), num_rows),), **wishes)
        self.tick()
        return request_id

    @property
    def num_media_bytes(self) -> int:
        epoch = self.scheduler._epoch
        assert epoch is not None
        return epoch.media.num_bytes


def test_a_request_waits_for_its_images_and_texts_pass() -> None:
    hand = ImageHand()
    first = hand.picture("a")
    assert hand.wanted() == [first]
    assert not hand.is_admitted(first)
    assert hand.admit([5, 6]).request_id
    assert hand.wanted() == []  # once is enough
    hand.bring(first)
    admit = hand.admit_of(first)
    assert [(span.start, span.num_tokens) for span in admit.request.media_spans] == [(2, 6)]


def test_images_that_cached_blocks_cover_are_not_wanted() -> None:
    hand = ImageHand()
    first = hand.picture("a")
    hand.bring(first)
    slot = hand.admit_of(first).slot
    hand.wanted()
    hand.step([(slot, 7, ENDED)])
    assert hand.num_media_bytes == 0
    second = hand.picture("a")  # 8 of its 9 tokens are cached, which end with the image
    assert hand.admit_of(second).num_cached_tokens == 8
    assert hand.wanted() == []
    third = hand.picture("b")  # another image of the same form
    assert not hand.is_admitted(third)
    assert hand.wanted() == [third]


def test_prompt_logprobs_need_the_images_although_blocks_are_cached() -> None:
    hand = ImageHand()
    first = hand.picture("a")
    hand.bring(first)
    hand.step([(hand.admit_of(first).slot, 7, ENDED)])
    hand.wanted()
    second = hand.picture("a", wants_prompt_logprobs=True)
    assert hand.wanted() == [second]


def test_a_lease_that_has_ended_is_asked_for_again() -> None:
    hand = ImageHand()
    first = hand.picture("a")
    assert hand.wanted() == [first]
    hand.bring(first, lease_end_s=NOW_S)
    assert not hand.is_admitted(first)
    assert hand.wanted() == [first]
    hand.bring(first)
    assert hand.is_admitted(first)


def test_images_on_their_way_and_not_computed_keep_to_the_bytes_of_the_shard() -> None:
    hand = ImageHand()
    first, second, third = (hand.picture(name, 8, text=(ord(name), 2)) for name in "abc")  # 32 bytes each
    assert hand.wanted() == [first, second]
    small = hand.picture("d", 2, text=(7, 7))
    assert hand.wanted() == []  # the third was first
    hand.bring(first)
    hand.bring(second)
    assert hand.wanted() == []
    hand.step(prefills=[(hand.admit_of(first).slot, 9)])  # one row is not computed yet
    assert hand.wanted() == []
    hand.step(prefills=[(hand.admit_of(first).slot, 10)])
    assert hand.wanted() == [third, small]
    assert hand.num_media_bytes == 32 + 32 + 8
    hand.step([(hand.admit_of(second).slot, 5, 0)])
    assert hand.num_media_bytes == 32 + 8


def test_an_image_that_several_requests_have_counts_once() -> None:
    hand = ImageHand()
    for text in (4, 5, 6):
        hand.picture("a", 8, text=(text, 2))
    assert len(hand.wanted()) == 3
    assert hand.num_media_bytes == 32


def test_tensors_count_where_they_are_more_than_the_rows() -> None:
    hand = ImageHand()
    hand.submit([IMAGE, 1], media=(make_image("a", 0, 1, num_tensor_bytes=60),))
    hand.tick()
    assert hand.num_media_bytes == 60


def test_images_of_the_next_requests_are_brought_while_all_slots_are_taken() -> None:
    hand = ImageHand()
    hand.die()
    hand.begin(num_slots=1)
    running = hand.admit([5, 6])
    first, second = hand.picture("a"), hand.picture("b", text=(4, 4))
    assert hand.wanted() == [first, second]
    hand.bring(first)
    hand.step([(running.slot, 7, ENDED)])
    assert hand.is_admitted(first)


def test_requests_that_leave_give_their_bytes_back() -> None:
    hand = ImageHand()
    waiting, seated = hand.picture("a"), hand.picture("b", text=(4, 4))
    hand.bring(seated)
    assert hand.num_media_bytes == 48
    hand.scheduler.on_cancel(waiting)  # type: ignore[arg-type]
    assert hand.num_media_bytes == 24
    hand.scheduler.on_cancel(seated)  # type: ignore[arg-type]
    assert hand.num_media_bytes == 0


def test_a_preempted_request_asks_for_its_images_again() -> None:
    """The scheduler preempts the second request, which looks for no prefix because log-probabilities are owed."""
    hand = ImageHand()
    hand.die()
    hand.begin(num_blocks=8, num_slots=4)
    first = hand.admit([1, 2, 3, 4], max_new=24)
    second = hand.picture("a", 4, max_new=20, wants_prompt_logprobs=True)
    assert hand.wanted() == [second]
    hand.bring(second)
    rows = [(first.slot, 10, 0), (hand.admit_of(second).slot, 10, 0)]
    while not hand.scheduler.stats().num_preemptions_total:
        hand.step(rows)
    assert hand.num_media_bytes == 0
    hand.step([(first.slot, 11, ENDED)])  # acknowledges the drop, and makes room
    assert hand.wanted() == [second]


def test_rule_22_a_new_epoch_asks_again_before_it_admits() -> None:
    hand = ImageHand()
    first = hand.picture("a")
    hand.wanted()
    hand.bring(first)
    assert hand.is_admitted(first)
    hand.die()
    assert hand.scheduler.take_wanted_media() == []
    hand.begin()
    assert not hand.is_admitted(first)
    assert hand.wanted() == [first]
    hand.bring(first)
    assert hand.is_admitted(first)


def test_images_that_cannot_be_brought_fail_their_request_alone() -> None:
    hand = ImageHand()
    bad, good = hand.picture("a"), hand.picture("b", text=(4, 4))
    [output] = hand.scheduler.fail_media(bad, "the image is broken")  # type: ignore[arg-type]
    assert output.request_id == bad
    assert output.failure is not None
    assert (output.failure.code, output.failure.message) == (FailureCode.MEDIA, "the image is broken")
    assert hand.scheduler.fail_media(bad, "again") == ()  # type: ignore[arg-type]
    assert hand.wanted() == [good]
    hand.bring(good)
    assert hand.is_admitted(good)


def test_images_that_never_fit_are_refused_and_fail_in_a_smaller_shard() -> None:
    hand = ImageHand()
    with pytest.raises(DoesNotFit, match="set aside"):
        hand.picture("a", 21)
    first = hand.picture("a", 20)
    hand.die()
    hand.media_bytes = 79
    decision = hand.begin()
    [output] = decision.outputs
    assert output.request_id == first
    assert output.failure is not None
    assert output.failure.code is FailureCode.MEDIA


def test_a_further_sequence_shares_the_prompt_and_needs_no_images() -> None:
    hand = ImageHand()
    leader = hand.picture("a")
    follower = hand.picture("a", shares_prompt_of=leader)
    assert hand.wanted() == [leader]
    hand.bring(leader)
    hand.step([(hand.admit_of(leader).slot, 7, 0)])
    assert hand.admit_of(follower).num_cached_tokens == 8
    assert hand.wanted() == []


def test_an_image_twice_in_a_prompt_is_brought_once() -> None:
    hand = ImageHand()
    prompt = [1, 2, *[IMAGE] * 6, *[IMAGE] * 6, 3]
    hand.submit(prompt, media=(make_image("a", 2, 6), make_image("a", 8, 6)))
    hand.tick()
    assert hand.num_media_bytes == 24


@pytest.mark.parametrize(("facts", "num_running"), [({}, 4), ({"uncut_spans": True}, 2), ({"uncut_prompts": True}, 2)])
def test_rule_16_a_range_that_is_not_cut_counts_whole_for_the_next_steps(
    facts: dict[str, bool], num_running: int
) -> None:
    """Chunks have 4 tokens and steps 16. Two images of 16 tokens that are not cut fill the next two steps."""
    hand = ImageHand(budget=Budget(max_step_tokens=16, max_prefill_tokens=16, max_chunk_tokens=4), **facts)
    for text in range(4):
        request = hand.submit([*[IMAGE] * 16, text], media=(make_image("a", 0, 16),), cache_salt=bytes([text]))
        hand.tick()
        hand.bring(request)
    assert hand.scheduler.num_running == num_running
