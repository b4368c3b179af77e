"""Makes what reads the images of a model that takes images, when the shard has said that the model does."""

from textmill_router.chat.template import ChatTemplates
from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.extras import ExtraMissing, check_installed
from textmill_router.media.images import Images
from textmill_router.media.limits import ImageLimits
from textmill_router.media.url_fetch import UrlFetcher
from textmill_router.media.worker_messages import ProcessorFacts, WorkerSetup
from textmill_router.media.worker_pool import READ_CPU_S, WORKER_MEMORY_BYTES, WorkerPool, WorkersUnusable
from textmill_router.serving.limits import max_whole_tokens
from textmill_router.serving.prompt_images import PromptImages, media_bounds
from textmill_router.settings import Settings, SettingsError
from textmill_router.text.tokenization import Tokenizer

PACKAGES = ("numpy", "PIL", "transformers")


async def open_images(
    settings: Settings, facts: ShardFacts, tokenizer: Tokenizer, templates: ChatTemplates, fetcher: UrlFetcher
) -> PromptImages | None:
    """Return what reads images, with its first process started, or None for a model of text.

    Raises SettingsError where the checkpoint's processor cannot be used, or the extra `vision` is not installed.
    """
    if not facts.media_kinds:
        return None
    try:
        check_installed(PACKAGES, extra="vision", setting=f"a model of the type {facts.media_kinds[0]}")
    except ExtraMissing as error:
        raise SettingsError(str(error)) from None
    limits = ImageLimits(
        max_images=settings.max_images,
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_tokens=settings.max_image_tokens,
    )
    setup = WorkerSetup(
        model_dir=settings.model_dir,
        dtype=facts.dtype,
        max_pixels=limits.max_pixels,
        max_tokens=limits.max_tokens,
        cpu_s=READ_CPU_S,
        memory_bytes=WORKER_MEMORY_BYTES,
    )
    pool = WorkerPool(setup, settings.media_workers)
    try:
        processor = await pool.start()
        _check(processor, facts, tokenizer)
    except WorkersUnusable as error:
        await pool.close()
        raise SettingsError(f"images of this model cannot be read: {error}") from None
    except BaseException:
        await pool.close()
        raise
    bounds = media_bounds(facts, max_whole_tokens(settings, facts))
    return PromptImages(Images(pool, processor), fetcher, limits, bounds, templates)


def _check(processor: ProcessorFacts, facts: ShardFacts, tokenizer: Tokenizer) -> None:
    if processor.kind not in facts.media_kinds:
        raise WorkersUnusable(f"config.json has the type {processor.kind}, the shard takes {facts.media_kinds[0]}")
    found = tokenizer.encode_plain(processor.row_text).tolist()
    if found != [processor.row_id]:
        raise WorkersUnusable(
            f"the tokenizer reads {processor.row_text!r} as the tokens {found}, wanted {processor.row_id} alone"
        )
