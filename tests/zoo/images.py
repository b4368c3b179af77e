"""The families of models with images, each with a tiny random model."""

from collections.abc import Mapping
from typing import Any

import torch

from tests.zoo.entry import SMALL
from tests.zoo.image_entry import IMAGE_ID, ImageEntry, noise

LLAMA = {**SMALL, "model_type": "llama"}
QWEN2 = {**SMALL, "model_type": "qwen2"}
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
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {**CLIP, "model_type": "pixtral", "head_dim": 8, "image_size": 64}
IDEFICS = {**CLIP, "image_size": 16, "patch_size": 4}
# Widths of time, rows and columns among the frequencies of a head of 16.
SECTIONS = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 2, 2]}
QWEN_VISION: Mapping[str, Any] = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.2,
}
IDS = {"image_token_id": IMAGE_ID}
QWEN_IDS = {**IDS, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}
GEMMA = {**SMALL, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"}


def _plain(random: torch.Generator) -> Mapping[str, torch.Tensor]:
    return {"pixel_values": noise(random, 1, 3, 16, 16)}


def _tiles(random: torch.Generator) -> Mapping[str, torch.Tensor]:
    """Return an image of 20 x 30 pixels: the whole image and two tiles side by side."""
    return {"pixel_values": noise(random, 1, 3, 3, 16, 16), "image_sizes": torch.tensor([[20, 30]])}


def _padded_tiles(random: torch.Generator) -> Mapping[str, torch.Tensor]:
    """Return two tiles, of which the second has no pixels in its last columns."""
    mask = torch.ones(1, 2, 16, 16, dtype=torch.int64)
    mask[0, 1, :, 12:] = 0
    return {"pixel_values": noise(random, 1, 2, 3, 16, 16), "pixel_attention_mask": mask}


def _patches(random: torch.Generator) -> Mapping[str, torch.Tensor]:
    """Return 4 x 6 patches, which become 2 x 3 rows."""
    return {"pixel_values": noise(random, 24, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 4, 6]])}


def _sized(random: torch.Generator) -> Mapping[str, torch.Tensor]:
    return {"pixel_values": noise(random, 1, 3, 16, 24), "image_sizes": torch.tensor([[16, 24]])}


def _qwen_marks(is_image_L: torch.Tensor, num_prompt: int) -> Mapping[str, torch.Tensor]:
    return {"mm_token_type_ids": is_image_L.long().unsqueeze(0)}


def _gemma_marks(is_image_L: torch.Tensor, num_prompt: int) -> Mapping[str, torch.Tensor]:
    return {"token_type_ids": is_image_L.long().unsqueeze(0)}


def _prompt_marks(is_image_L: torch.Tensor, num_prompt: int) -> Mapping[str, torch.Tensor]:
    return {"token_type_ids": (torch.arange(len(is_image_L)) >= num_prompt).long().unsqueeze(0)}


IMAGE_ZOO: tuple[ImageEntry, ...] = (
    ImageEntry(
        name="Llava",
        model_type="llava",
        config={"text_config": LLAMA, "vision_config": CLIP, **IDS},
        known_for="CLIP tower, the last layer but one, without its first row",
        make_image=_plain,
        is_native=True,
    ),
    ImageEntry(
        name="Pixtral",
        model_type="llava",
        config={
            "text_config": {**SMALL, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
            "vision_config": PIXTRAL,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            **IDS,
        },
        known_for="images of any size, a separator behind each row of patches",
        make_image=_sized,
        has_separators=True,
        is_native=True,
    ),
    ImageEntry(
        name="Llava-Next",
        model_type="llava_next",
        config={"text_config": LLAMA, "vision_config": CLIP, "image_grid_pinpoints": [[16, 32], [32, 16]], **IDS},
        known_for="tiles, a newline row behind each row of patches",
        make_image=_tiles,
        is_native=True,
    ),
    ImageEntry(
        name="Llava-OneVision",
        model_type="llava_onevision",
        config={
            "text_config": QWEN2,
            "vision_config": SIGLIP,
            "image_grid_pinpoints": [[16, 32], [32, 16]],
            "video_token_id": 301,
            **IDS,
        },
        known_for="SigLIP tower, tiles",
        make_image=_tiles,
        is_native=True,
    ),
    ImageEntry(
        name="Idefics3",
        model_type="idefics3",
        config={"text_config": LLAMA, "vision_config": {**IDEFICS, "model_type": "idefics3_vision"}, **IDS},
        known_for="tiles with separators between, masked pixels",
        make_image=_padded_tiles,
        joined_dim=1,
        has_separators=True,
        is_native=True,
    ),
    ImageEntry(
        name="SmolVLM",
        model_type="smolvlm",
        config={"text_config": LLAMA, "vision_config": {**IDEFICS, "model_type": "smolvlm_vision"}, **IDS},
        known_for="tiles with separators between, masked pixels",
        make_image=_padded_tiles,
        joined_dim=1,
        has_separators=True,
        is_native=True,
    ),
    ImageEntry(
        name="Qwen2-VL",
        model_type="qwen2_vl",
        config={
            "text_config": {**SMALL, "rope_parameters": SECTIONS},
            "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 64},
            **QWEN_IDS,
        },
        known_for="three rotary positions, in sections",
        make_image=_patches,
        marks=_qwen_marks,
        is_native=True,
    ),
    ImageEntry(
        name="Qwen2.5-VL",
        model_type="qwen2_5_vl",
        config={
            "text_config": {**SMALL, "rope_parameters": SECTIONS},
            "vision_config": {
                **QWEN_VISION,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            **QWEN_IDS,
        },
        known_for="three rotary positions, windows in the tower",
        make_image=_patches,
        marks=_qwen_marks,
        is_native=True,
    ),
    ImageEntry(
        name="Qwen3-VL",
        model_type="qwen3_vl",
        config={
            "text_config": {**SMALL, "head_dim": 16, "num_hidden_layers": 3, "rope_parameters": SECTIONS},
            "vision_config": {
                **QWEN_VISION,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            **QWEN_IDS,
        },
        known_for="three rotary positions, interleaved; rows for the first layers (deepstack)",
        make_image=_patches,
        marks=_qwen_marks,
        is_native=True,
    ),
    ImageEntry(
        name="InternVL",
        model_type="internvl",
        config={
            "text_config": QWEN2,
            "vision_config": {
                **CLIP,
                "model_type": "internvl_vision",
                "image_size": [16, 16],
                "patch_size": [4, 4],
                "use_qk_norm": True,
                "norm_type": "rms_norm",
            },
            "image_seq_length": 4,
            **IDS,
        },
        known_for="rows of several tiles",
        make_image=lambda random: {"pixel_values": noise(random, 3, 3, 16, 16)},
        has_separators=True,
        is_native=True,
    ),
    ImageEntry(
        name="Mistral3",
        model_type="mistral3",
        config={
            "text_config": {**SMALL, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
            "vision_config": PIXTRAL,
            "spatial_merge_size": 2,
            **IDS,
        },
        known_for="Pixtral tower, merged patches",
        make_image=_sized,
        has_separators=True,
        is_native=True,
    ),
    ImageEntry(
        name="PaliGemma",
        model_type="paligemma",
        config={
            "text_config": {**GEMMA, "model_type": "gemma"},
            "vision_config": SIGLIP,
            "projection_dim": 64,
            "hidden_size": 64,
            "image_token_id": 350,
        },
        known_for="the whole prompt is bidirectional; the placeholder lies outside the vocabulary",
        make_image=_plain,
        marks=_prompt_marks,
        image_id=350,
    ),
    ImageEntry(
        name="PaliGemma 2",
        model_type="paligemma",
        config={
            "text_config": {
                **GEMMA,
                "model_type": "gemma2",
                "query_pre_attn_scalar": 16,
                "sliding_window": 64,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 5.0,
            },
            "vision_config": SIGLIP,
            "projection_dim": 64,
            "hidden_size": 64,
            **IDS,
        },
        known_for="the whole prompt is bidirectional; windows, caps of scores and logits",
        make_image=_plain,
        marks=_prompt_marks,
    ),
    ImageEntry(
        name="Gemma3",
        model_type="gemma3",
        config={
            "text_config": {
                **GEMMA,
                "model_type": "gemma3_text",
                "num_hidden_layers": 3,
                "query_pre_attn_scalar": 16,
                "sliding_window": 12,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            **IDS,
        },
        known_for="each image is bidirectional, in layers with and without a window",
        make_image=_plain,
        marks=_gemma_marks,
    ),
)
