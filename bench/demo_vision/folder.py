"""Writes the folder of the model: weights and tokenizer of the demo model, tower, projector, files of a processor."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaConfig

from bench.demo_vision.tower import VISION

PLACEHOLDER, UNUSED = "<image>", "<gh_stars>"  # the first takes the id of the second, with which no text was trained
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}The picture shows<image>.
{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_folder(folder: Path, demo: Path, tower: Mapping[str, torch.Tensor], processor: CLIPImageProcessorPil) -> None:
    """Write the model of `demo` with a tower. A folder that exists already is replaced."""
    made = folder.with_suffix(".making")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    text = LlamaConfig.from_pretrained(demo)
    tokenizer = json.loads((demo / "tokenizer.json").read_text(encoding="utf-8"))
    image_id = tokenizer["model"]["vocab"].pop(UNUSED)
    tokenizer["model"]["vocab"][PLACEHOLDER] = image_id
    for token in tokenizer["added_tokens"]:
        if token["content"] == UNUSED:
            token["content"] = PLACEHOLDER
    _write(made / "tokenizer.json", tokenizer)
    _write(made / "tokenizer_config.json", json.loads((demo / "tokenizer_config.json").read_text(encoding="utf-8")))
    (made / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    shutil.copy(demo / "generation_config.json", made)
    config = LlavaConfig(
        text_config=text.to_dict(),
        vision_config=VISION,
        image_token_id=image_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(made)
    processor.save_pretrained(made)
    _write(
        made / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "patch_size": VISION["patch_size"],
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,  # the row that stands for the whole picture, which is left out
            "image_token": PLACEHOLDER,
        },
    )
    stored = load_file(demo / "model.safetensors")
    weights = {f"model.language_model.{name.removeprefix('model.')}": tensor for name, tensor in stored.items()}
    weights |= {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tower.items()}
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
