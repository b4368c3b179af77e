"""The families of models whose images are served, one row per family. The names are those of transformers.

A row says what no model of transformers tells by its code: which tensors the processor of the family makes of one
image, and how the family marks the tokens of an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.model.media import FLOATS, TensorRule

_SIZES = TensorRule(("int64",), 2)
_OPTIONAL_SIZES = TensorRule(("int64",), 2, is_required=False)


def _pixels(num_dims: int) -> TensorRule:
    return TensorRule(FLOATS, num_dims)


@dataclass(frozen=True, slots=True)
class Marks:
    """The argument of the model's forward that has a number for each token."""

    name: str
    of_text: int  # of a token that sees the tokens before it
    of_span: int  # of tokens that see each other


@dataclass(frozen=True, slots=True)
class ImageFamily:
    """One `model_type` of config.json."""

    model_type: str
    tensors: Mapping[str, TensorRule]
    marks: Marks | None = None  # None: the model needs none where it gets embeddings and positions
    is_prompt_span: bool = False  # the tokens of the prompt see each other, text included
    # Whether the model's code fails for an image of one row, whose only dimension it takes for that of the batch.
    fails_for_one_row: bool = False
    # Where the tokens of an image see each other: the tokens that every image has.
    num_span_tokens: Callable[[Any], int] = lambda config: 0


_TILES = {"pixel_values": _pixels(5), "image_sizes": _SIZES}
_PADDED_TILES = {
    "pixel_values": _pixels(5),
    "pixel_attention_mask": TensorRule(("int64", "bool"), 4, is_required=False),
}
_PATCHES = {"pixel_values": _pixels(2), "image_grid_thw": TensorRule(("int64",), 2)}
_PLAIN = {"pixel_values": _pixels(4)}

FAMILIES: Mapping[str, ImageFamily] = {
    family.model_type: family
    for family in (
        # `image_sizes` only where the tower is Pixtral's, which takes images of any size.
        ImageFamily("llava", {"pixel_values": _pixels(4), "image_sizes": _OPTIONAL_SIZES}),
        ImageFamily("llava_next", _TILES),
        ImageFamily("llava_onevision", _TILES),
        ImageFamily("idefics3", _PADDED_TILES),
        ImageFamily("smolvlm", _PADDED_TILES),
        ImageFamily("qwen2_vl", _PATCHES),
        ImageFamily("qwen2_5_vl", _PATCHES),
        ImageFamily("qwen3_vl", _PATCHES),
        ImageFamily("internvl", _PLAIN),
        ImageFamily("mistral3", {"pixel_values": _pixels(4), "image_sizes": _SIZES}, fails_for_one_row=True),
        ImageFamily(
            "paligemma",
            _PLAIN,
            marks=Marks("token_type_ids", of_text=1, of_span=0),
            is_prompt_span=True,
            num_span_tokens=lambda config: (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
        ),
        ImageFamily(
            "gemma3",
            _PLAIN,
            marks=Marks("token_type_ids", of_text=0, of_span=1),
            num_span_tokens=lambda config: int(config.mm_tokens_per_image),
        ),
    )
}


# Why images of other families are not served.
_REASONS = {
    "mllama": "their layers look at an image by cross attention, for which this engine keeps no keys and values",
    "llama4": "transformers has a processor of their images for torchvision alone",
    "phi4_multimodal": "transformers has a processor of their images for torchvision alone",
}
_OTHER_REASON = "nobody has compared their images with transformers here"


def family_of(config: Any, *, text_only: bool = False) -> ImageFamily | None:
    """Return the row of a config, or None for a model without images and for one that does not generate text.

    Raises UnsupportedModelError for a family without a row, unless `text_only` asks for the model's texts alone.
    """
    if getattr(config, "vision_config", None) is None:
        return None
    model_type = str(config.model_type)
    family = FAMILIES.get(model_type)
    generates = (
        model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    if family is None and generates and not text_only:
        raise UnsupportedModelError(
            f"models of type {model_type} take images, which are not served: "
            f"{_REASONS.get(model_type, _OTHER_REASON)}. docs/models.md lists the families whose images are served; "
            "with --text-only the model is served for texts alone, if transformers has a class for them"
        )
    return family
