"""Checkpoints without weights of every family that takes images: the files of processor, tokenizer and chat template.

The classes, names of tokens and chat templates are those of published checkpoints; sizes are small. `own_processor` is
transformers' processor of such a folder, from which tests take what they expect.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.byte_tokenizer import make_byte_tokenizer

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOL_TEMPLATE = (
    "<|begin|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INTERN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'text' %}{{ block['text'] }}{% elif block['type'] in ['image', 'image_url'] %}{{ '[IMG]' }}"
    "{% endif %}{% endfor %}{% endif %}[/INST]{% else %}"
    "{{ message['content'] if message['content'] is string else message['content'][0]['text'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}{% elif item['type'] == 'text' %}{{ item['text'] | trim }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PALIGEMMA_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class ImageFamily:
    """One family. `row_token` stands for one row of the tower's output; `tokens` are further special tokens."""

    model_type: str
    processor: str
    images: str  # the module of the image processor, and its class without "Pil"
    image_class: str
    template: str
    row_token: str = "<image>"
    tokens: tuple[str, ...] = ()
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the processor
    named_tokens: Mapping[str, str] = field(default_factory=dict)  # attributes of the tokenizer


_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS: dict[str, Any] = {
    "template": SMOL_TEMPLATE,
    "tokens": ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *_TILES),
    "image_settings": {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}},
    "settings": {"image_seq_len": 4},
}
_QWEN: dict[str, Any] = {
    "images": "qwen2_vl",
    "image_class": "Qwen2VLImageProcessor",
    "template": QWEN_TEMPLATE,
    "row_token": "<|image_pad|>",
    "tokens": ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "image_settings": {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 64 * 200}},
}
_ANYRES = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]}
_CLIP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}

FAMILIES = {
    "llava": ImageFamily(
        "llava",
        "LlavaProcessor",
        "clip",
        "CLIPImageProcessor",
        LLAVA_TEMPLATE,
        image_settings=_CLIP,
        settings={"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_next": ImageFamily(
        "llava_next",
        "LlavaNextProcessor",
        "llava_next",
        "LlavaNextImageProcessor",
        LLAVA_TEMPLATE,
        image_settings={**_CLIP, **_ANYRES},
        settings={"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_onevision": ImageFamily(
        "llava_onevision",
        "LlavaOnevisionProcessor",
        "llava_onevision",
        "LlavaOnevisionImageProcessor",
        QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"),
        tokens=("<|im_start|>", "<|im_end|>", "<video>"),
        image_settings={"size": {"height": 16, "width": 16}, **_ANYRES},
        settings={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "idefics3": ImageFamily("idefics3", "Idefics3Processor", "idefics3", "Idefics3ImageProcessor", **_IDEFICS),
    "smolvlm": ImageFamily("smolvlm", "SmolVLMProcessor", "smolvlm", "SmolVLMImageProcessor", **_IDEFICS),
    "qwen2_vl": ImageFamily("qwen2_vl", "Qwen2VLProcessor", **_QWEN),
    "qwen2_5_vl": ImageFamily("qwen2_5_vl", "Qwen2_5_VLProcessor", **_QWEN),
    "qwen3_vl": ImageFamily("qwen3_vl", "Qwen3VLProcessor", **_QWEN),
    "internvl": ImageFamily(
        "internvl",
        "InternVLProcessor",
        "got_ocr2",
        "GotOcr2ImageProcessor",
        INTERN_TEMPLATE,
        row_token="<IMG_CONTEXT>",
        tokens=("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<video>"),
        image_settings={"size": {"height": 16, "width": 16}, "crop_to_patches": True, "max_patches": 6},
        settings={"image_seq_length": 4},
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "mistral3": ImageFamily(
        "mistral3",
        "PixtralProcessor",
        "pixtral",
        "PixtralImageProcessor",
        PIXTRAL_TEMPLATE,
        row_token="[IMG]",
        tokens=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
        image_settings={"size": {"longest_edge": 48}, "patch_size": {"height": 4, "width": 4}},
        settings={"patch_size": 4, "spatial_merge_size": 2},
    ),
    "pixtral": ImageFamily(
        "llava",
        "PixtralProcessor",
        "pixtral",
        "PixtralImageProcessor",
        PIXTRAL_TEMPLATE,
        row_token="[IMG]",
        tokens=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
        image_settings={"size": {"longest_edge": 48}, "patch_size": {"height": 4, "width": 4}},
        settings={"patch_size": 4},
    ),
    "paligemma": ImageFamily(
        "paligemma",
        "PaliGemmaProcessor",
        "siglip",
        "SiglipImageProcessor",
        PALIGEMMA_TEMPLATE,
        image_settings={"size": {"height": 16, "width": 16}, "image_seq_length": 16},
    ),
    "gemma3": ImageFamily(
        "gemma3",
        "Gemma3Processor",
        "gemma3",
        "Gemma3ImageProcessor",
        GEMMA_TEMPLATE,
        row_token="<image_soft_token>",
        tokens=("<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"),
        image_settings={"size": {"height": 16, "width": 16}},
        settings={"image_seq_length": 9},
        named_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
}


def write_image_family(folder: Path, name: str) -> Path:
    """Write the files of a family's checkpoint, but for weights and the sizes of the model, and return the folder."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    # Merges of line breaks show whether the text around an image is tokenised with the image's own text.
    tokenizer = make_byte_tokenizer([(b"\n", b"\n"), (b"\n\n", b"\n"), (b" ", b"\n")], add_begin=name != "paligemma")
    tokenizer.add_special_tokens([family.row_token, *family.tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin|>",
            "eos_token": "<|end|>",
            "chat_template": family.template,
            "processor_class": family.processor,
            "extra_special_tokens": dict(family.named_tokens),
        },
    )
    _write(folder / "preprocessor_config.json", {"image_processor_type": family.image_class, **family.image_settings})
    _write(folder / "processor_config.json", {"processor_class": family.processor, **family.settings})
    row_id = tokenizer.token_to_id(family.row_token)
    _write(folder / "config.json", {"model_type": family.model_type, "image_token_id": row_id})
    return folder


def row_id_of(folder: Path) -> int:
    """Return the id of the token that stands for one row."""
    row_id: int = json.loads((folder / "config.json").read_text())["image_token_id"]
    return row_id


def own_processor(folder: Path, name: str) -> Any:
    """Return transformers' processor of such a folder, made without a processor of videos."""
    import transformers
    from transformers.processing_utils import ProcessorMixin

    family = FAMILIES[name]
    module = importlib.import_module(f"transformers.models.{family.images}.image_processing_pil_{family.images}")
    image_processor = getattr(module, family.image_class + "Pil").from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if family.processor == "PixtralProcessor":
        # Its module imports a function of the processor for torchvision, which is not installed.
        sys.modules.setdefault("transformers.models.pixtral.image_processing_pixtral", module)
        of_name = importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    else:
        of_name = getattr(transformers, family.processor)

    class _WithoutVideos(of_name):  # type: ignore[misc,valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is not None:
                ProcessorMixin.check_argument_for_proper_class(self, argument_name, argument)

        @classmethod
        def get_attributes(cls) -> list[str]:
            attributes: list[str] = of_name.get_attributes()
            return attributes

    if name == "smolvlm":  # its own one reads settings of the processor of videos
        _WithoutVideos.apply_chat_template = ProcessorMixin.apply_chat_template
    parts = {"image_processor": image_processor, "tokenizer": tokenizer}
    given = {part: parts.get(part) for part in of_name.get_attributes()}
    return _WithoutVideos(**given, **family.settings, chat_template=family.template)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))
