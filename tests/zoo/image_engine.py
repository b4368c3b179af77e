"""Runs texts with images through the real step loop, which takes images as the router puts them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import torch
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_put import IncomingItem, MediaHeader, TensorHeader, check_header
from textmill_shard.engine.media_rope import rope_rule
from textmill_shard.engine.media_store import MediaStore
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.model.graph_recorder import GraphRecorder
from textmill_shard.model.media import MediaFacts
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import Admit, MediaSpan, ShardFacts

from tests.fakes.shard_facts import facts_of
from tests.fakes.step_harness import Shard, admit
from tests.zoo.image_drive import BLOCK_SIZE, ImageModel, ImageText, reference_logits

NUM_SLOTS = 4
BLOCKS_PER_SLOT = 48
MAX_STEP_TOKENS = 256
MEDIA_BYTES = 1 << 22


def greedy_reference(model: ImageModel, text: ImageText, num_new: int) -> list[int]:
    """Return the best tokens behind the prompt, by transformers' full forward of the whole text for each of them."""
    grown = ImageText(text.ids[: text.num_prompt], text.num_prompt, text.images)
    for _ in range(num_new):
        grown.ids.append(int(reference_logits(model, grown)[-1].argmax()))
    return grown.ids[text.num_prompt :]


def image_facts(runner: ModelRunner) -> ShardFacts:
    """Return the facts of a shard that serves the model, as `lifecycle.py` fills them."""
    media = media_of(runner)
    return facts_of(
        runner,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_SLOTS * BLOCKS_PER_SLOT,
        num_slots=NUM_SLOTS,
        max_step_tokens=MAX_STEP_TOKENS,
        media_kinds=media.kinds,
        media_cache_bytes=MEDIA_BYTES,
        media_row_bytes=media.row_bytes,
        uncut_spans=media.uncut_spans,
        uncut_prompts=media.is_prompt_span,
    )


class ImageShard(Shard):
    """A shard with an empty store of images, which counts what the tower encodes."""

    def __init__(
        self, runner: ModelRunner, *, recorder: GraphRecorder | None = None, token_reader: TokenReader | None = None
    ) -> None:
        """With a `recorder` decode steps are graphs, and with a `token_reader` steps overlap."""
        self.num_encoded = 0
        media = media_of(runner)
        facts = image_facts(runner)
        store = MediaStore(max_bytes=MEDIA_BYTES, row_bytes=media.row_bytes)
        runner.allocate_kv(facts.num_blocks)
        if recorder is not None:
            assert runner.record_graphs(recorder, (1, 2, NUM_SLOTS), lambda share: None, num_slots=NUM_SLOTS)
        self.desk = MediaDesk(
            store,
            media,
            runner.encode_media,
            device=runner.device,
            runs_beside_steps=True,
            on_encoded=self._count,
        )
        super().__init__(facts=facts, runner=runner, media=self.desk, rope=rope_rule(runner), token_reader=token_reader)

    def _count(self) -> None:
        self.num_encoded += 1

    def put_images(self, text: ImageText) -> None:
        """Put the images of a text that the store does not keep."""
        for image in text.images:
            digest = digest_of(image.tensors)
            if not self.desk.store.kept([digest]):
                put_tensors(self.desk, digest, image.tensors, num_rows=len(image.rows.rows_nD))

    def admit_text(
        self,
        slot: int,
        text: ImageText,
        *,
        output: Sequence[int] = (),
        num_new: int,
        cached_of: int = 0,
        cached: int = 0,
    ) -> Admit:
        """Return the admit of a text, whose first `cached` tokens stand in the blocks of the slot `cached_of`."""
        own = range(slot * BLOCKS_PER_SLOT, (slot + 1) * BLOCKS_PER_SLOT)
        num_blocks = -(-(text.num_prompt + num_new) // BLOCK_SIZE)
        shared = range(cached_of * BLOCKS_PER_SLOT, cached_of * BLOCKS_PER_SLOT + cached // BLOCK_SIZE)
        request = admit(
            slot,
            text.ids[: text.num_prompt],
            blocks=[*shared, *own[len(shared) : num_blocks]],
            output=output,
            max_new=num_new,
            cached=cached,
            ignore_eos=True,
        )
        spans = [
            MediaSpan(digest_of(image.tensors), span.start, span.num_tokens, span.first_row, grid_of(image.tensors))
            for image in text.images
            for span in image.spans
        ]
        return replace(request, media=tuple(spans))


def media_of(runner: ModelRunner) -> MediaFacts:
    assert runner.media is not None
    return runner.media


def digest_of(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return blake2b(b"".join(bytes_of(tensor) for tensor in tensors.values()), digest_size=16).digest()


def grid_of(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    grid = tensors.get("image_grid_thw")
    return () if grid is None else tuple(grid.flatten().tolist())


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def put_tensors(desk: MediaDesk, digest: bytes, tensors: Mapping[str, torch.Tensor], *, num_rows: int) -> None:
    """Put an image as the router does."""
    headers = [
        TensorHeader(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    header = MediaHeader(digest, desk.facts.kinds[0], tuple(headers), num_rows)
    check_header(header, desk.facts, max_bytes=MEDIA_BYTES)
    item = IncomingItem(header, desk.store)
    item.write(b"".join(bytes_of(tensor) for tensor in tensors.values()))
    item.finish()
