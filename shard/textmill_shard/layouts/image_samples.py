"""Makes the tensors of an image of a given size without a processor, to measure what the tower takes for the image."""

# n rows that the image shall have

from collections.abc import Mapping
from math import isqrt, prod
from typing import Any

import torch

GRAY = 0.5  # of every pixel, because some towers leave out tiles that are black


def sample_image(config: Any, names: Mapping[str, Any], *, num_rows: int) -> Mapping[str, torch.Tensor]:
    """Return float32 pixels, and sizes, of an image of at most `num_rows` rows, or of one tile where a tile has more.

    `names` are the tensors that the tower takes, which tell how the family cuts images.
    """
    vision = config.vision_config
    if "image_grid_thw" in names:
        return _patches(vision, num_rows)
    side = vision.image_size if isinstance(vision.image_size, int) else max(vision.image_size)
    patch = vision.patch_size if isinstance(vision.patch_size, int) else max(vision.patch_size)
    if vision.model_type == "pixtral":  # images of any size
        unit = patch * int(getattr(config, "spatial_merge_size", 1))
        side = min(side // unit, max(1, isqrt(num_rows))) * unit
        return {"pixel_values": _gray(1, 3, side, side), "image_sizes": torch.tensor([[side, side]])}
    rows_of_tile = (side // patch) ** 2
    if "image_sizes" in names and hasattr(config, "image_grid_pinpoints"):
        return _tiles(config.image_grid_pinpoints, side, num_tiles=num_rows // rows_of_tile)
    if "pixel_attention_mask" in names:
        num_tiles = max(1, num_rows // (rows_of_tile // int(config.scale_factor) ** 2))
        return {
            "pixel_values": _gray(1, num_tiles, 3, side, side),
            "pixel_attention_mask": torch.ones(1, num_tiles, side, side, dtype=torch.int64),
        }
    if hasattr(config, "downsample_ratio"):
        num_tiles = max(1, num_rows // int(rows_of_tile * config.downsample_ratio**2))
        return {"pixel_values": _gray(num_tiles, 3, side, side)}
    return {"pixel_values": _gray(1, 3, side, side)}


def _patches(vision: Any, num_rows: int) -> Mapping[str, torch.Tensor]:
    merge = int(vision.spatial_merge_size)
    height = max(1, isqrt(num_rows))
    width = max(1, num_rows // height)
    width_of_patch = int(vision.in_channels) * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    return {
        "pixel_values": _gray(height * width * merge**2, width_of_patch),
        "image_grid_thw": torch.tensor([[1, height * merge, width * merge]]),
    }


def _tiles(pinpoints: Any, side: int, *, num_tiles: int) -> Mapping[str, torch.Tensor]:
    """Return the image for the pinpoint of most tiles that are not too many, or of fewest, behind the whole image."""
    by_tiles = sorted((prod(length // side for length in size) + 1, tuple(size)) for size in pinpoints)
    fitting = [found for found in by_tiles if found[0] <= num_tiles] or by_tiles[:1]
    found, size = fitting[-1]
    return {"pixel_values": _gray(1, found, 3, side, side), "image_sizes": torch.tensor([size])}


def _gray(*shape: int) -> torch.Tensor:
    return torch.full(shape, GRAY)
