"""The families of models whose images are served, one row per family. The names are those of transformers.

A row says what no model of transformers tells by its code: which tensors the processor of the family makes of one
image, and how the family marks the tokens of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from textmill_shard.model.media import FLOATS, TensorRule

_SIZES = TensorRule(("int64",), 2)
_OPTIONAL_SIZES = TensorRule(("int64",), 2, is_required=False)


def _pixels(num_dims: int) -> TensorRule:
    return TensorRule(FLOATS, num_dims)


@dataclass(frozen=True, slots=True)
class ImageFamily:
    """One `model_type` of config.json."""

    model_type: str
    tensors: Mapping[str, TensorRule] = field(default_factory=lambda: MappingProxyType({}))
    # Arguments of the model's forward for a text of its own that is causal, by the value of each token.
    text_marks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


FAMILIES: Mapping[str, ImageFamily] = {
    family.model_type: family
    for family in (
        # `image_sizes` only where the tower is Pixtral's, which takes images of any size.
        ImageFamily("llava", {"pixel_values": _pixels(4), "image_sizes": _OPTIONAL_SIZES}),
    )
}


def family_of(config: Any) -> ImageFamily | None:
    """Return the row of a config, or None for a model without images, or of a family that has no row."""
    if getattr(config, "vision_config", None) is None:
        return None
    return FAMILIES.get(str(config.model_type))
