"""From the images of a call to the spans of its prompt: where their bytes come from, and where they stand."""

import asyncio
from array import array
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from textmill_router.chat.image_frame import image_frame
from textmill_router.chat.template import ChatTemplates
from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.errors import ImageCode, ImageRefused, RuleBroken, TemplateFailed, ValidationFailed
from textmill_router.media.data_url import data_of, is_data_url
from textmill_router.media.image_source import ImageSource
from textmill_router.media.images import ImagePrompt, Images, KnownImage
from textmill_router.media.limits import ImageLimits
from textmill_router.media.markdown_images import MarkedText, split_images
from textmill_router.media.media_item import MediaItem, request_bytes
from textmill_router.media.replacement import fill
from textmill_router.media.url_fetch import UrlFetcher

MAX_FETCHES = 4  # at a time for one call

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MediaBounds:
    """What the shard can take of one request.

    A request may need half of `cache_bytes`. A span, or a prompt with images, of more tokens than `max_span_tokens` or
    `max_prompt_tokens` cannot be computed in one step; 0 = it need not be.
    """

    cache_bytes: int
    row_bytes: int
    max_span_tokens: int = 0
    max_prompt_tokens: int = 0


def media_bounds(facts: ShardFacts, max_whole_tokens: int) -> MediaBounds:
    """Read the bounds from what the shard reports; a step computes at most `max_whole_tokens` of one request whole."""
    return MediaBounds(
        cache_bytes=facts.media_cache_bytes,
        row_bytes=facts.media_row_bytes,
        max_span_tokens=max_whole_tokens if facts.uncut_spans else 0,
        max_prompt_tokens=max_whole_tokens if facts.uncut_prompts else 0,
    )


@dataclass(frozen=True, slots=True)
class TextWithImages:
    """A text of the native routes whose images have been read.

    `adds_special_tokens` says whether the tokenizer puts its own tokens around the prompt.
    """

    marked: MarkedText
    images: tuple[KnownImage, ...]
    adds_special_tokens: bool


class PromptImages:
    """The images of the prompts of one model. `fetcher` gets the images of `http(s)` URLs."""

    def __init__(
        self, images: Images, fetcher: UrlFetcher, limits: ImageLimits, bounds: MediaBounds, templates: ChatTemplates
    ) -> None:
        self.limits = limits
        self._images = images
        self._fetcher = fetcher
        self._bounds = bounds
        facts = images.facts
        self._frame = image_frame(templates, facts.placeholder)

    @property
    def token_texts(self) -> frozenset[str]:
        """The texts of the tokens that stand for images, which no user may write."""
        return frozenset({self._images.facts.placeholder, self._images.facts.row_text})

    @property
    def row_id(self) -> int:
        """The token that stands for one row of an image."""
        return self._images.facts.row_id

    async def read(self, sources: Sequence[ImageSource], *, salt: bytes) -> tuple[KnownImage, ...]:
        """Return what each image becomes. `salt` is that of the caller.

        Raises ImageRefused, Overloaded and ShuttingDown, and ends the work on the other images then.
        """
        self.check_number([source.field for source in sources])
        fetches = asyncio.Semaphore(MAX_FETCHES)
        return tuple(await _all_of([self._read(source, fetches, salt) for source in sources]))

    def check_number(self, fields: Sequence[str]) -> None:
        """Raise ValidationFailed for more images than a call may have; `fields` are their paths in the body."""
        most = self.limits.max_images
        if len(fields) > most:
            message = f"a call may have at most {most} images (--max-images), found {len(fields)}; leave some out"
            raise ValidationFailed(message, field=fields[most])

    def adds_special_tokens(self, prompt: str, bos_token: str | None) -> bool:
        """Whether the tokenizer puts its own tokens around a rendered chat.

        transformers' processors do so unless the chat begins with the first of these tokens, and the tokenizers of text
        models never do.
        """
        if self._images.facts.puts_bos_behind:
            return False
        return bos_token is None or not prompt.startswith(bos_token)

    def fill(
        self, pieces: Sequence[str], images: Sequence[KnownImage], *, has_all_rows: bool = False
    ) -> tuple[str, ...]:
        """Return the pieces of a rendered chat with the texts of the images.

        A text has one token for each run of rows, or with `has_all_rows` one for each row. Raises TemplateFailed.
        """
        filled = fill(pieces, self._images.facts.placeholder, self.texts(images, has_all_rows=has_all_rows))
        if filled is None:
            raise TemplateFailed(
                f"the chat template of this model does not show each of the {len(images)} images once: leave out "
                "images in messages of roles that the template shows without images"
            )
        return self._finished(filled) if images else filled

    def texts(self, images: Sequence[KnownImage], *, has_all_rows: bool = False) -> list[str]:
        """Return the texts that stand for images in a prompt."""
        if not has_all_rows:
            return [image.text for image in images]
        return [image.facts.replacement.whole_text(self._images.facts.row_text) for image in images]

    async def in_text(self, text: str, *, field: str, salt: bytes) -> TextWithImages:
        """Read the images of a text of the native routes, which are `![](URL)`.

        Raises ImageRefused, ValidationFailed, Overloaded and ShuttingDown.
        """
        marked = split_images(text)
        for token in self.token_texts:
            if any(token in part for part in marked.texts):
                message = f"`{field}` must not hold {token!r}, which stands for an image: write ![](URL) for each image"
                raise ValidationFailed(message, field=field)
        has_several = len(marked.urls) > 1
        numbered = enumerate(marked.urls, start=1)
        sources = [ImageSource(url, field, number=number if has_several else None) for number, url in numbered]
        images = await self.read(sources, salt=salt)
        return TextWithImages(marked, images, not (images and self._images.facts.puts_bos_behind))

    def parts(self, found: TextWithImages, *, has_all_rows: bool = False) -> list[str]:
        """Return the texts of the client and, between them, those of the images.

        Each image is shown as the chat template shows an image in a message.
        """
        before, after = self._frame
        parts = [found.marked.texts[0]]
        for text, following in zip(
            self.texts(found.images, has_all_rows=has_all_rows), found.marked.texts[1:], strict=True
        ):
            parts += [before + text + after, following]
        bos = self._images.facts.puts_bos_behind
        if bos and found.images:
            parts[-2] += bos
            parts[-1] += "\n"
        return parts

    def place(self, ids: "array[int]", images: Sequence[KnownImage]) -> ImagePrompt:
        """Return the ids of a prompt with a token for each row of its images. Raises RuleBroken."""
        placed = self._images.place(ids, images)
        if placed is None:
            raise RuleBroken(
                "`{field}` must not hold the token {token}, which stands for an image; give images as parts of a chat, "
                "or as ![](URL) on the native routes",
                field="inputs",
                token=repr(self._images.facts.row_text),
            )
        if placed.items:
            self._check_bounds(placed.items, len(placed.ids), [image.field for image in images])
        return placed

    async def close(self) -> None:
        """End the processes that read images."""
        await self._images.close()

    async def _read(self, source: ImageSource, fetches: asyncio.Semaphore, salt: bytes) -> KnownImage:
        try:
            return await self._read_one(source, fetches, salt)
        except ImageRefused as refused:
            if source.number is None:
                raise
            raise refused.of_image(source.number) from None

    async def _read_one(self, source: ImageSource, fetches: asyncio.Semaphore, salt: bytes) -> KnownImage:
        most = self.limits.max_bytes
        if is_data_url(source.url):
            data = await data_of(source.url, field=source.field, max_bytes=most)
        else:
            async with fetches:
                data = await self._fetcher.fetch(source.url, field=source.field, max_bytes=most)
        return await self._images.read(data, source.detail, field=source.field, salt=salt)

    def _finished(self, pieces: tuple[str, ...]) -> tuple[str, ...]:
        """Put the first token of texts behind the last image, and a line break at the end, as PaliGemma has it."""
        bos, row = self._images.facts.puts_bos_behind, self._images.facts.row_text
        if not bos:
            return pieces
        last = max(index for index, piece in enumerate(pieces) if row in piece)
        end = pieces[last].rindex(row) + len(row)
        finished = [*pieces]
        finished[last] = pieces[last][:end] + bos + pieces[last][end:]
        finished[-1] += "\n"
        return tuple(finished)

    def _check_bounds(self, items: tuple[MediaItem, ...], num_prompt_tokens: int, fields: Sequence[str]) -> None:
        """Raise ImageRefused for images that the shard cannot take. `fields` are the paths of the items' images."""
        bounds = self._bounds
        needed = request_bytes(items, bounds.row_bytes)
        if needed > bounds.cache_bytes // 2:
            raise ImageRefused(
                f"the images of a call may take {bounds.cache_bytes // 2} bytes in the shard, half of "
                f"--media-cache-bytes, and these take {needed}; send fewer or smaller ones",
                field=fields[0],
                code=ImageCode.TOO_LARGE,
            )
        longest = [max(span.num_tokens for span in item.spans) for item in items]
        place = longest.index(max(longest))
        of_several = f" for image {place + 1} of {len(items)}" if len(items) > 1 else ""
        for found, most, what, where, field in (
            (longest[place], bounds.max_span_tokens, "an image", of_several, fields[place]),
            (num_prompt_tokens, bounds.max_prompt_tokens, "a prompt with images", "", fields[0]),
        ):
            if 0 < most < found:
                raise ImageRefused(
                    f"this model reads {what} in one step of at most {most} tokens (--max-batch-prefill-tokens), "
                    f"found {found}{where}",
                    field=field,
                    code=ImageCode.TOO_LARGE,
                )


async def _all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all results. The first error ends the other work and is raised alone."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
