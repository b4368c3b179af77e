"""The families of models with images, each with a tiny random model."""

from collections.abc import Mapping
from typing import Any

from tests.zoo.entry import SMALL
from tests.zoo.image_entry import IMAGE_ID, ImageEntry, noise

LLAMA = {**SMALL, "model_type": "llama"}
CLIP: Mapping[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 32,
    "initializer_range": 0.2,
}

IMAGE_ZOO: tuple[ImageEntry, ...] = (
    ImageEntry(
        name="Llava",
        model_type="llava",
        config={"text_config": LLAMA, "vision_config": CLIP, "image_token_id": IMAGE_ID},
        known_for="CLIP tower, the last layer but one, without its first row",
        make_image=lambda random: {"pixel_values": noise(random, 1, 3, 16, 16)},
    ),
)
