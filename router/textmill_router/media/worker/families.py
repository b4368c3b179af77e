"""What the families of image processors have for themselves: their tensors, and how they make less of an image.

A row belongs to a class of processors, because models of one type may come with processors of several classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOW_DETAIL_TOKENS = 256
ImageSettings = dict[str, Any]
"""Arguments of an image processor that differ from those of the checkpoint."""


def _own(processor: Any, max_tokens: int) -> ImageSettings:
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """One class of processors.

    `tensor_names` are those that the tower takes, as far as the processor makes them. `within` gives the settings with
    which an image becomes at most so many tokens, as far as the processor can, and `low` those of `detail: low`.
    `follows_picture` says that a smaller picture becomes fewer tokens where the settings change nothing.
    """

    tensor_names: tuple[str, ...]
    within: Callable[[Any, int], ImageSettings] = _own
    low: Callable[[Any, int], ImageSettings] = _own
    follows_picture: bool = False


def _area(processor: Any, max_tokens: int) -> ImageSettings:
    """Qwen's processors: `longest_edge` is the largest area in pixels, and a token is a square of merged patches."""
    images = processor.image_processor
    longest = min(images.size.longest_edge, max_tokens * (images.patch_size * images.merge_size) ** 2)
    return {"size": {"shortest_edge": min(images.size.shortest_edge, longest), "longest_edge": longest}}


def _low_area(processor: Any, max_tokens: int) -> ImageSettings:
    return _area(processor, min(max_tokens, LOW_DETAIL_TOKENS))


def _longest_side(processor: Any, max_tokens: int) -> ImageSettings:
    """Pixtral: `longest_edge` is a side in pixels, and a token is a square of merged patches."""
    side = processor.patch_size * processor.spatial_merge_size
    longest = min(processor.image_processor.size.longest_edge, max(1, math.isqrt(max_tokens)) * side)
    return {"size": {"longest_edge": longest}}


def _tiles_by_side(processor: Any, max_tokens: int) -> ImageSettings:
    """Idefics3, SmolVLM: the longer side is cut into `num` tiles at most, and the whole image is one tile more."""
    images = processor.image_processor
    num = max(1, math.isqrt(max(0, max_tokens // processor.image_seq_len - 1)))
    longest = min(images.size.longest_edge, num * images.max_image_size["longest_edge"])
    return {"size": {"longest_edge": longest}}


def _one_tile(processor: Any, max_tokens: int) -> ImageSettings:
    return {"do_image_splitting": False}


def _tiles(processor: Any, max_tokens: int) -> ImageSettings:
    """InternVL: at most `max_patches` tiles, and one more for the whole image where there are several."""
    most = max(1, max_tokens // processor.image_seq_length - 1)
    return {"max_patches": min(processor.image_processor.max_patches, most)}


def _uncropped(processor: Any, max_tokens: int) -> ImageSettings:
    return {"crop_to_patches": False}


_QWEN = Family(("pixel_values", "image_grid_thw"), _area, _low_area)
_IDEFICS = Family(("pixel_values", "pixel_attention_mask"), _tiles_by_side, _one_tile)

FAMILIES = {
    "LlavaProcessor": Family(("pixel_values",)),
    "LlavaNextProcessor": Family(("pixel_values", "image_sizes"), follows_picture=True),
    "LlavaOnevisionProcessor": Family(("pixel_values", "image_sizes"), follows_picture=True),
    "Idefics3Processor": _IDEFICS,
    "SmolVLMProcessor": _IDEFICS,
    "Qwen2VLProcessor": _QWEN,
    "Qwen2_5_VLProcessor": _QWEN,
    "Qwen3VLProcessor": _QWEN,
    "InternVLProcessor": Family(("pixel_values",), _tiles, _uncropped),
    "PixtralProcessor": Family(("pixel_values", "image_sizes"), _longest_side),
    "PaliGemmaProcessor": Family(("pixel_values",)),
    "Gemma3Processor": Family(("pixel_values",)),
}
