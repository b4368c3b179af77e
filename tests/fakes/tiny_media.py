"""Makes tiny random models of images and speech, in the folder layout of real models, and files for them."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq

RATE = 16_000
_VISION: dict[str, Any] = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION |= {"intermediate_size": 48, "patch_size": 8}
_SPEECH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_SPEECH |= {"conv_dim": [32] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 4], "vocab_size": 32}
_SPEECH |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3}
_SPEECH |= {"classifier_proj_size": 16}
IMAGES: Mapping[str, Mapping[str, Any]] = {
    "vit": _VISION,
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "mobilenet_v2": {"depth_multiplier": 0.25},
}
_RESNET4: dict[str, Any] = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32]}
_RESNET4 |= {"depths": [1] * 4, "layer_type": "basic", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 12,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {"model_type": "resnet", **IMAGES["resnet"], "out_features": ["stage2"]},
}
OBJECTS: Mapping[str, Mapping[str, Any]] = {
    "yolos": {**_VISION, "image_size": [64, 96], "num_detection_tokens": 12},
    "detr": _DETR,
    "conditional_detr": _DETR,
    "table-transformer": _DETR,
    "deformable_detr": {
        **_DETR,
        "d_model": 64,
        "decoder_layers": 2,
        "backbone_config": {**_RESNET4, "out_features": ["stage2", "stage3", "stage4"]},
        "disable_custom_kernels": True,
    },
    "rt_detr": {
        "d_model": 32,
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [16, 16, 32],
        "encoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "feat_strides": [8, 16, 32],
        "decoder_in_channels": [32, 32, 32],
        "decoder_layers": 1,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 4,
        "num_queries": 12,
        "anchor_image_size": [64, 64],
        "disable_custom_kernels": True,
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1] * 4,
            "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
    },
}
_SWIN: dict[str, Any] = {"model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 16, "window_size": 4}
_SWIN |= {"depths": [1] * 4, "num_heads": [2] * 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_DECODER: dict[str, Any] = {"model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
_DECODER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
SEGMENTS: Mapping[str, Mapping[str, Any]] = {
    "segformer": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "upernet": {"backbone_config": _SWIN, "hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 64},
    "beit": {**_VISION, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "maskformer": {
        "fpn_feature_size": 32,
        "mask_feature_size": 32,
        "backbone_config": _SWIN,
        "decoder_config": {**_DECODER, "num_queries": 12},
    },
    "mask2former": {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 24,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "dim_feedforward": 24,
        "num_queries": 12,
        "backbone_config": _SWIN,
    },
    "detr": {
        **_DETR,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "backbone_config": _RESNET4,
    },
}
SOUNDS: Mapping[str, Mapping[str, Any]] = {
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "wavlm": _SPEECH,
    "unispeech-sat": _SPEECH,
    "data2vec-audio": _SPEECH,
    "audio-spectrogram-transformer": {**_VISION, "max_length": 64, "num_mel_bins": 16, "patch_size": 8},
}
_PROCESSORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "vit": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    "swin": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "resnet": ("ConvNextImageProcessor", {"size": {"shortest_edge": 40}}),
    "mobilenet_v2": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "yolos": ("YolosImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "detr": ("DetrImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "conditional_detr": ("ConditionalDetrImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "table-transformer": ("DetrImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "deformable_detr": ("DeformableDetrImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "rt_detr": ("RTDetrImageProcessor", {"size": {"height": 64, "width": 64}}),
    "segformer": ("SegformerImageProcessor", {"size": {"height": 64, "width": 64}}),
    "upernet": ("SegformerImageProcessor", {"size": {"height": 64, "width": 64}}),
    "beit": ("BeitImageProcessor", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
    "maskformer": ("MaskFormerImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}, "size_divisor": 32}),
    "mask2former": (
        "Mask2FormerImageProcessor",
        {"size": {"shortest_edge": 64, "longest_edge": 96}, "size_divisor": 32},
    ),
}


def make_media_model(folder: Path, model_type: str, auto_class: Any, *, seed: int = 0, **changes: Any) -> Any:
    """Write a tiny model with a head of a class of transformers and its processor, and return the model."""
    is_segmented = "Segmentation" in auto_class.__name__
    fields = (SEGMENTS if is_segmented else {**IMAGES, **OBJECTS, **SOUNDS})[model_type]
    config = AutoConfig.for_model(model_type, **{**fields, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval().save_pretrained(folder)
    if model_type in _PROCESSORS:
        name, settings = _PROCESSORS[model_type]
        write_json(folder / "preprocessor_config.json", {"image_processor_type": name, **settings})
    elif model_type == "audio-spectrogram-transformer":
        extractor = {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 16, "max_length": 64}
        write_json(folder / "preprocessor_config.json", {**extractor, "sampling_rate": RATE})
    else:
        extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": RATE, "do_normalize": True}
        write_json(folder / "preprocessor_config.json", {**extractor, "return_attention_mask": False})
    return model


WHISPER_LANGUAGES = ("en", "de", "fr")
# Of each layer of the tiny decoder one head, whose attention tells when a word is said.
ALIGNMENT_HEADS = [[0, 0], [1, 1]]


def make_whisper(folder: Path, *, is_multilingual: bool = True, has_words: bool = True, seed: int = 0) -> None:
    """Write a tiny random Whisper that reads windows of 2 s, with a tokenizer of bytes and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_whisper_tokenizer(folder)
    fields: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_mel_bins": 16}
    fields |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    fields |= {
        "max_source_positions": 100,
        "max_target_positions": 64,
        "vocab_size": len(ids),
        "pad_token_id": ids["<|endoftext|>"],
    }
    fields |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|endoftext|>"]}
    begin = {"decoder_start_token_id": ids["<|startoftranscript|>"]}
    config = AutoConfig.for_model("whisper", **fields, **begin)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSpeechSeq2Seq.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    model.eval().save_pretrained(folder)
    settings: dict[str, Any] = {**begin, "max_length": 48, "no_timestamps_token_id": ids["<|notimestamps|>"]}
    settings |= {"eos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"]}
    settings |= {"is_multilingual": is_multilingual, "max_initial_timestamp_index": 50}
    settings |= {"prev_sot_token_id": ids["<|startofprev|>"], "suppress_tokens": [], "begin_suppress_tokens": []}
    if is_multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in WHISPER_LANGUAGES}
        settings["task_to_id"] = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    if has_words:
        settings["alignment_heads"] = ALIGNMENT_HEADS
    write_json(folder / "generation_config.json", settings)
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "chunk_length": 2}
    extractor |= {"sampling_rate": RATE, "hop_length": 160, "n_fft": 400, "padding_value": 0.0}
    write_json(folder / "preprocessor_config.json", {**extractor, "processor_class": "WhisperProcessor"})


def _write_whisper_tokenizer(folder: Path) -> dict[str, int]:
    """Write tokenizer.json of bytes, and return the id of each special token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["endoftext", "startoftranscript", *WHISPER_LANGUAGES, "translate", "transcribe", "startoflm"]
    special = [f"<|{mark}|>" for mark in (*marks, "startofprev", "nospeech", "notimestamps")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", special=False) for step in range(1501)])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "WhisperTokenizer", "bos_token": end, "eos_token": end, "unk_token": end}
    write_json(folder / "tokenizer_config.json", {**settings, "pad_token": end, "extra_special_tokens": special})
    return tokenizer.get_vocab()


def write_character_tokenizer(folder: Path) -> None:
    """Write a vocabulary of characters for CTC: the blank, the mark between words, and letters."""
    letters = "abcdefghijklmnopqrstuvwxyz'"
    vocabulary = {"<pad>": 0, "|": 1, "<unk>": 2, **{letter: index for index, letter in enumerate(letters, 3)}}
    write_json(folder / "vocab.json", vocabulary)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|", "bos_token": None}
    write_json(
        folder / "tokenizer_config.json", {**special, "eos_token": None, "tokenizer_class": "Wav2Vec2CTCTokenizer"}
    )


def picture_file(width: int, height: int, *, seed: int = 0, kind: str = "PNG") -> bytes:
    """Return a file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return written.getvalue()


def sound(seconds: float, *, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Return samples of tones that change, at 16 kHz."""
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * hertz * times + phase) for hertz, phase in random.uniform(1, 3000, size=(5, 2))]
    found: np.ndarray[Any, np.dtype[np.float32]] = (sum(tones) / 10).astype(np.float32)
    return found


def sound_file(seconds: float, *, seed: int = 0) -> bytes:
    """Return these samples as a WAV of floats, which loses nothing."""
    written = io.BytesIO()
    soundfile.write(written, sound(seconds, seed=seed), RATE, format="WAV", subtype="FLOAT")
    return written.getvalue()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))
