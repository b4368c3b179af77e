"""The form of a row of the zoo of models with images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.zoo.entry import TOLERANCE

IMAGE_ID = 300  # the placeholder; texts of the zoo have other ids


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One family. `config` has the fields of its tiny model's config."""

    name: str
    model_type: str
    config: Mapping[str, Any]
    known_for: str  # what the family asks of the engine
    make_image: Callable[[torch.Generator], Mapping[str, torch.Tensor]]  # the tensors that a processor makes
    joined_dim: int = 0  # where the images of one text stand side by side in the tensors of pixels
    # Further arguments of the reference's forward, from which tokens are images and how long the prompt is.
    marks: Callable[[torch.Tensor, int], Mapping[str, torch.Tensor]] = lambda is_image_L, num_prompt: {}
    has_separators: bool = False  # a text may stand between the rows of one image
    is_native: bool = False  # the native decoder computes the steps
    tolerance: float = TOLERANCE
    reason: str = ""  # why the tolerance is looser than TOLERANCE
    image_id: int = IMAGE_ID


def noise(random: torch.Generator, *shape: int) -> torch.Tensor:
    """Return the pixels of a random image."""
    return torch.randn(*shape, generator=random)
