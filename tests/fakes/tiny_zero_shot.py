"""Makes tiny random models of images that read texts of a call, or give depths, in the folder layout of real models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.zoedepth import image_processing_pil_zoedepth

from tests.fakes.tiny_media import write_json
from tests.fakes.word_tokenizer import SEP_ID, vocabulary, write_word_tokenizer

_LAYERS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_WORDS: dict[str, Any] = {"vocab_size": len(vocabulary()), "pad_token_id": 0, "eos_token_id": SEP_ID, "bos_token_id": 2}
_TEXT: dict[str, Any] = {**_LAYERS, **_WORDS, "max_position_embeddings": 30}
_VISION: dict[str, Any] = {**_LAYERS, "image_size": 32, "patch_size": 8}
_TOWERS: dict[str, Any] = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 16}
# One stage of EfficientNet for each kernel.
_EFFICIENT: dict[str, Any] = {"image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 32}
_EFFICIENT |= {"kernel_sizes": [3, 5], "in_channels": [32, 16], "out_channels": [16, 32], "strides": [1, 2]}
_EFFICIENT |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depth_divisor": 8}
# Types whose scores are similarities of texts and images.
MATCHES: Mapping[str, Mapping[str, Any]] = {
    "clip": _TOWERS,
    "siglip": {**_TOWERS, "text_config": {**_TEXT, "max_position_embeddings": 64, "projection_size": 32}},
    "siglip2": {
        "text_config": {**_TEXT, "max_position_embeddings": 64, "projection_size": 32},
        "vision_config": {**_LAYERS, "patch_size": 8, "num_patches": 16},
    },
    "align": {"text_config": _TEXT, "vision_config": _EFFICIENT, "projection_dim": 32},
    "altclip": {**_TOWERS, "text_config": {**_TEXT, "max_position_embeddings": 40, "project_dim": 16}},
    "chinese_clip": _TOWERS,
    "metaclip_2": _TOWERS,
    "clipseg": {**_TOWERS, "extract_layers": [0, 1], "reduce_dim": 16, "decoder_num_attention_heads": 2},
    "blip": {**_TOWERS, "image_text_hidden_size": 16},
    "blip-2": {
        "vision_config": _VISION,
        "qformer_config": {**_TEXT, "encoder_hidden_size": 32, "use_qformer_text_input": True},
        "text_config": {"model_type": "opt", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1},
        "num_query_tokens": 4,
        "image_text_hidden_size": 16,
    },
}
_RESNET: dict[str, Any] = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32]}
_RESNET |= {"depths": [1] * 4, "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]}
_SWIN: dict[str, Any] = {"model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 16, "window_size": 4}
_SWIN |= {"depths": [1] * 4, "num_heads": [2] * 4, "out_features": ["stage2", "stage3", "stage4"]}
_DINO: dict[str, Any] = {
    "backbone_config": _SWIN,
    "text_config": {"model_type": "bert", **_TEXT},
    "d_model": 64,
    "num_queries": 12,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_text_len": 32,
    "fusion_droppath": 0.0,
    "disable_custom_kernels": True,
}
DESCRIBED_OBJECTS: Mapping[str, Mapping[str, Any]] = {
    "owlvit": {**_TOWERS, "projection_dim": 32},
    "owlv2": {**_TOWERS, "projection_dim": 32},
    "grounding-dino": _DINO,
    "mm-grounding-dino": _DINO,
}
_DINOV2: dict[str, Any] = {"model_type": "dinov2", "image_size": 32, "patch_size": 8, "hidden_size": 32}
_DINOV2 |= {"num_hidden_layers": 4, "num_attention_heads": 4, "reshape_hidden_states": False}
_DINOV2 |= {"out_features": ["stage1", "stage2", "stage3", "stage4"], "apply_layernorm": True}
_BEIT: dict[str, Any] = {"model_type": "beit", "image_size": 32, "patch_size": 8, **_LAYERS, "num_hidden_layers": 4}
_BEIT |= {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
_NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 16, 16, 32], "fusion_hidden_size": 16}
_ANYTHING: dict[str, Any] = {
    **_NECK,
    "backbone_config": _DINOV2,
    "patch_size": 8,
    "reassemble_hidden_size": 32,
    "head_hidden_size": 8,
}
DEPTHS: Mapping[str, Mapping[str, Any]] = {
    "dpt": {**_VISION, **_NECK, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "glpn": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
    },
    "depth_anything": _ANYTHING,
    "prompt_depth_anything": _ANYTHING,
    "zoedepth": {
        **_NECK,
        "backbone_config": _BEIT,
        "backbone_hidden_size": 32,
        "num_relative_features": 8,
        "bottleneck_features": 16,
        "bin_embedding_dim": 16,
        "num_attractors": [4, 2, 1, 1],
        "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    },
}
_SQUARE: dict[str, Any] = {"size": {"height": 32, "width": 32}}
_CROP: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
_PROCESSORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clip": ("CLIPImageProcessor", _CROP),
    "siglip": ("SiglipImageProcessor", _SQUARE),
    "siglip2": ("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16}),
    "align": ("EfficientNetImageProcessor", {**_SQUARE, "crop_size": {"height": 32, "width": 32}}),
    "altclip": ("CLIPImageProcessor", _CROP),
    "chinese_clip": ("ChineseCLIPImageProcessor", {**_SQUARE, "do_center_crop": False}),
    "metaclip_2": ("CLIPImageProcessor", _CROP),
    "clipseg": ("ViTImageProcessor", _SQUARE),
    "blip": ("BlipImageProcessor", _SQUARE),
    "blip-2": ("BlipImageProcessor", _SQUARE),
    "owlvit": ("OwlViTImageProcessor", {**_SQUARE, "crop_size": {"height": 32, "width": 32}}),
    "owlv2": ("Owlv2ImageProcessor", _SQUARE),
    "grounding-dino": ("GroundingDinoImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "mm-grounding-dino": ("GroundingDinoImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "dpt": ("DPTImageProcessor", _SQUARE),
    "glpn": ("GLPNImageProcessor", {"size_divisor": 32}),
    "depth_anything": ("DPTImageProcessor", {**_SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 8}),
    "prompt_depth_anything": (
        "PromptDepthAnythingImageProcessor",
        {**_SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 8},
    ),
    "zoedepth": ("ZoeDepthImageProcessor", {**_SQUARE, "ensure_multiple_of": 8}),
}


def make_picture_model(folder: Path, model_type: str, auto_class: Any, *, seed: int = 0) -> Any:
    """Write a tiny model of a class of transformers with its processor and tokenizer, and return the model."""
    config = AutoConfig.for_model(model_type, **{**MATCHES, **DESCRIBED_OBJECTS, **DEPTHS}[model_type])
    build = getattr(auto_class, "from_config", None) or auto_class._from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
        for name, parameter in model.named_parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
            if name.startswith(("box_head.", "class_head.logit")):
                parameter.data.mul_(0.02)  # else all scores of OWL-ViT were 0 or 1, and its boxes lines
            if model_type in DEPTHS and name.endswith("bias") and parameter.numel() == 1:
                parameter.data.add_(1.0)  # of the last layer, which lets no depth below 0 pass
    model.eval().save_pretrained(folder)
    name, settings = _PROCESSORS[model_type]
    write_json(folder / "preprocessor_config.json", {"image_processor_type": name, **settings})
    if model_type not in DEPTHS:
        write_word_tokenizer(folder)
    return model


def _resize(depth: torch.Tensor, *, size: list[int], interpolation: str, antialias: bool) -> torch.Tensor:
    """Resize as torchvision does tensors: `resize` of its v2 functions is torch's own interpolation."""
    return torch.nn.functional.interpolate(
        depth[None], size=size, mode=interpolation, align_corners=False, antialias=antialias
    )[0]


@contextmanager
def lent_resize() -> Iterator[None]:
    """Let the processor of ZoeDepth resize depths, which needs torchvision without this."""
    modes = SimpleNamespace(BICUBIC="bicubic")
    image_processing_pil_zoedepth.tvF = SimpleNamespace(resize=_resize, InterpolationMode=modes)
    try:
        yield
    finally:
        del image_processing_pil_zoedepth.tvF
