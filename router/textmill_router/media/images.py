"""From the bytes of images to what they become in a prompt; what is known of an image is not asked again."""

import asyncio
import hashlib
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from textmill_router.errors import ImageCode, ImageRefused
from textmill_router.media.image_shelf import ImageFacts, ImageShelf
from textmill_router.media.image_source import Detail
from textmill_router.media.media_item import MediaItem, TensorPart
from textmill_router.media.replacement import Rows, expand, replacement_of
from textmill_router.media.worker_messages import ImageRefusal, ProcessorFacts
from textmill_router.media.worker_pool import WorkerPool

DIGEST_BYTES = 16


class ImageLost(Exception):
    """The tensors of an image that was read before cannot be made again."""


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that has been read. `field` is its path in the body.

    `text` stands for the image in a prompt, with one token for each run of rows. `is_new` says that the image was read
    for this call, because nothing was known of it.
    """

    digest: bytes
    field: str
    facts: ImageFacts
    prepare: Callable[[], Awaitable[tuple[TensorPart, ...]]]
    is_new: bool

    @property
    def text(self) -> str:
        return self.facts.replacement.text

    @property
    def rows(self) -> Rows:
        return Rows(self.digest, self.facts.replacement.run_lengths, self.facts.grid)


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """The ids of a prompt with the images in it."""

    ids: "array[int]"
    items: tuple[MediaItem, ...]


class Images:
    """Reads images of one checkpoint with the workers of `pool`."""

    def __init__(self, pool: WorkerPool, facts: ProcessorFacts, shelf: ImageShelf | None = None) -> None:
        self.facts = facts
        self._pool = pool
        self._shelf = ImageShelf() if shelf is None else shelf
        self._readings: dict[bytes, asyncio.Task[ImageFacts | ImageRefusal]] = {}  # under way, by digest

    async def read(self, data: bytes, detail: Detail, *, field: str, salt: bytes = b"") -> KnownImage:
        """Return what an image becomes. `field` is the path of the image in the body.

        `salt`, of at most 64 bytes, is that of the caller, so that the time tells nothing of the images of others.

        Raises ImageRefused, Overloaded and ShuttingDown.
        """
        digest = await self._digest(data, detail, salt)
        verdict = self._shelf.verdict(digest)
        is_new = verdict is None
        if verdict is None:
            verdict = await self._read_once(digest, data, detail)
        if isinstance(verdict, ImageRefusal):
            code = ImageCode.TOO_LARGE if verdict.is_too_large else ImageCode.INVALID
            raise ImageRefused(f"`{field}`: the image cannot be used: {verdict.reason}", field=field, code=code)
        return KnownImage(digest, field, verdict, partial(self._tensors, digest, data, detail), is_new)

    def place(self, ids: "array[int]", images: Sequence[KnownImage]) -> ImagePrompt | None:
        """Return a prompt in which each run of rows has its tokens, or None where the ids have other runs."""
        expanded = expand(ids, self.facts.row_id, [image.rows for image in images])
        if expanded is None:
            return None
        items = [
            MediaItem(
                digest=image.digest,
                kind=self.facts.kind,
                num_rows=image.facts.replacement.num_rows,
                num_tensor_bytes=image.facts.num_tensor_bytes,
                spans=spans,
                prepare=image.prepare,
                is_new=image.is_new,
            )
            for image, spans in zip(images, expanded.spans, strict=True)
        ]
        return ImagePrompt(expanded.ids, tuple(items))

    async def close(self) -> None:
        """End the workers."""
        await self._pool.close()

    async def _digest(self, data: bytes, detail: Detail, salt: bytes) -> bytes:
        """Return the name of an image: equal bytes with other settings, or of another caller, have another name."""
        head = "\0".join((self.facts.kind, self.facts.settings, detail.value, "")).encode()
        return await asyncio.to_thread(_hash, head, data, salt) if len(data) > 1 << 18 else _hash(head, data, salt)

    async def _read_once(self, digest: bytes, data: bytes, detail: Detail) -> ImageFacts | ImageRefusal:
        """Read an image, or wait for another call that reads an equal image now."""
        task = self._readings.get(digest)
        if task is None:
            task = self._readings[digest] = asyncio.create_task(self._ask(digest, data, detail))
            task.add_done_callback(lambda done: self._forget(digest, done))
        return await asyncio.shield(task)  # for the others, when this call's client leaves

    def _forget(self, digest: bytes, task: "asyncio.Task[ImageFacts | ImageRefusal]") -> None:
        del self._readings[digest]
        if not task.cancelled():
            task.exception()  # those who wait have it

    async def _ask(self, digest: bytes, data: bytes, detail: Detail) -> ImageFacts | ImageRefusal:
        found = await self._pool.read(data, detail)
        if isinstance(found, ImageRefusal):
            if found.is_final:
                self._shelf.keep_verdict(digest, found)
            return found
        answer = found.answer
        facts = ImageFacts(replacement_of(answer.text, self.facts.row_text), answer.grid, answer.num_tensor_bytes)
        self._shelf.keep_verdict(digest, facts)
        self._shelf.keep_tensors(digest, found.tensors)
        return facts

    async def _tensors(self, digest: bytes, data: bytes, detail: Detail) -> tuple[TensorPart, ...]:
        """Return the tensors, which a worker makes again where they are not kept. Raises ImageLost and RequestError."""
        kept = self._shelf.tensors(digest)
        if kept is not None:
            return kept
        found = await self._pool.read(data, detail)
        if isinstance(found, ImageRefusal):
            raise ImageLost(found.reason)
        self._shelf.keep_tensors(digest, found.tensors)
        return found.tensors


def _hash(head: bytes, data: bytes, salt: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=DIGEST_BYTES, key=salt)
    digest.update(data)
    return digest.digest()
