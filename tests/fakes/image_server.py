"""A tiny random Llava with the files of its processor, for tests that start real servers."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.fakes.image_families import row_id_of, write_image_family
from tests.fakes.tiny_models import make_random_model
from tests.zoo.images import CLIP, LLAMA

_WEIGHT_FILES = ("config.json", "generation_config.json", "model.safetensors")


def write_tiny_llava(folder: Path) -> Any:
    """Write the model, and return transformers' own model of these weights in float32."""
    write_image_family(folder, "llava")
    text = {**LLAMA, "max_position_embeddings": 2048}
    config = AutoConfig.for_model("llava", text_config=text, vision_config=CLIP, image_token_id=row_id_of(folder))
    made = folder / "made"
    model = make_random_model(config, made, auto_class=AutoModelForImageTextToText)
    for name in _WEIGHT_FILES:
        shutil.copy(made / name, folder / name)
    shutil.rmtree(made)
    return model


def greedy_behind(model: Any, ids: list[int], pixel_values: torch.Tensor, num_new: int, end_id: int) -> list[int]:
    """Return the best tokens behind a prompt with images, by a full forward of transformers for each of them."""
    found: list[int] = []
    while len(found) < num_new and end_id not in found:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + found]), pixel_values=pixel_values, use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found
