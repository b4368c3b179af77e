"""The small world of `scheduler_world.py` with images in prompts. A stand-in for the engine brings the images."""

from random import Random

from textmill_router.media.media_item import MediaItem
from textmill_router.request import GenerationRequest

from tests.fakes.media_items import ROW_BYTES, make_image
from tests.fakes.scheduler_world import Client, World

IMAGE_ID = 5  # also a token of texts
MEDIA_BYTES = 10 * ROW_BYTES
SHARD_LEASE_TURNS = 12
ROUTER_LEASE_TURNS = 6  # the engine asks again before the shard's lease ends
NAMES = "abcdefgh"


class ImageWorld(World):
    """Each new prompt may get up to two of eight images, of 1 to 5 rows each, in the place of some of its tokens.

    An image reaches the shard some turns after the scheduler has asked for it, if the shard has room then.
    """

    def __init__(self, seed: int, *, num_callers: int = 1) -> None:
        self._images = Random(seed)
        self.more_facts = {
            "media_cache_bytes": MEDIA_BYTES,
            "media_row_bytes": ROW_BYTES,
            "uncut_spans": self._images.random() < 0.5,
        }
        self._on_the_way: list[tuple[int, GenerationRequest]] = []  # with the turn of the arrival
        self.num_pictured = 0
        self.num_brought = 0
        self.num_kept = 0
        self.num_full = 0
        self.most_bytes = 0
        super().__init__(seed, num_callers=num_callers)
        # The least budget holds an image beside a token of every other slot.
        rows = min(self.budget.max_prefill_tokens, self.budget.max_step_tokens - self.num_slots + 1, 5)
        self.max_rows = max(rows, 1)

    def _picture(self, prompt: list[int], source: GenerationRequest | None) -> tuple[list[int], tuple[MediaItem, ...]]:
        if source is not None:
            num_equal = next(
                (at for at, pair in enumerate(zip(prompt, source.prompt_ids, strict=False)) if pair[0] != pair[1]),
                min(len(prompt), len(source.prompt_ids)),
            )
            return prompt, tuple(item for item in source.media if item.spans[-1].end <= num_equal)
        prompt = list(prompt)
        items = []
        start = 0
        for _ in range(self._images.choice([0, 1, 1, 2])):
            name = self._images.choice(NAMES)
            num_rows = 1 + NAMES.index(name) % self.max_rows
            start += self._images.randint(0, 6)
            if start + num_rows > len(prompt):
                break
            items.append(make_image(name, start, num_rows, num_tensor_bytes=4))
            prompt[start : start + num_rows] = [IMAGE_ID] * num_rows
            start += num_rows
        self.num_pictured += bool(items)
        return prompt, tuple(items)

    def _after_plan(self) -> None:
        for request in self.scheduler.take_wanted_media():
            self._on_the_way.append((self.turn + self._images.choice([0, 1, 3, 8]), request))
        due = [request for turn, request in self._on_the_way if turn <= self.turn]
        self._on_the_way = [entry for entry in self._on_the_way if entry[0] > self.turn]
        for request in due if self.shard is not None else []:
            self._bring(request)

    def _dies(self) -> None:
        self._on_the_way.clear()
        super()._dies()

    def _bring(self, request: GenerationRequest) -> None:
        assert self.shard is not None
        for item in request.media:
            if self.shard.keeps(item.digest, SHARD_LEASE_TURNS):
                self.num_kept += 1
            elif self.shard.put(item.digest, item.num_bytes(ROW_BYTES), SHARD_LEASE_TURNS):
                self.num_brought += 1
            else:
                self.num_full += 1
                self._on_the_way.append((self.turn + 1, request))
                return
        self.scheduler.on_media(request.request_id, float(self.turn + ROUTER_LEASE_TURNS))

    def _check_state(self) -> None:
        super()._check_state()
        epoch = self.scheduler._epoch
        if epoch is not None:
            assert epoch.media.num_bytes <= MEDIA_BYTES
            self.most_bytes = max(self.most_bytes, epoch.media.num_bytes)

    def _may_be_held(self, client: Client) -> bool:
        return bool(client.request.media) or super()._may_be_held(client)

    def _bound_turns(self, client: Client) -> int:
        """An image may be on its way for 8 turns, wait for a lease of 12 turns and be asked for again."""
        return 4 * super()._bound_turns(client)

    def run(self):  # type: ignore[no-untyped-def]
        counts = super().run()
        epoch = self.scheduler._epoch
        assert epoch is None or epoch.media.num_bytes == 0, "images are left behind"
        return counts
