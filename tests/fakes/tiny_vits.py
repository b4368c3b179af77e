"""Makes a tiny random VITS, in the folder layout of a real one, whose tokenizer knows small letters and the blank."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

RATE = 16_000
LETTERS = " abcdefghijklmnopqrstuvwxyz'"
_FIELDS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
_FIELDS |= {"window_size": 2, "flow_size": 16, "spectrogram_bins": 9, "vocab_size": len(LETTERS) + 1}
_FIELDS |= {"upsample_initial_channel": 16, "upsample_rates": [8, 8], "upsample_kernel_sizes": [16, 16]}
_FIELDS |= {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]], "wavenet_kernel_size": 3}
_FIELDS |= {"prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 2, "depth_separable_num_layers": 2}
_FIELDS |= {"posterior_encoder_num_wavenet_layers": 2, "duration_predictor_num_flows": 2}
_FIELDS |= {"duration_predictor_filter_channels": 16, "sampling_rate": RATE}


def make_vits(folder: Path, *, num_speakers: int = 1, seed: int = 0, **tokenizer: Any) -> VitsModel:
    """Write the model, with further settings of its tokenizer, and return transformers' own."""
    folder.mkdir(parents=True, exist_ok=True)
    speakers = {"num_speakers": num_speakers, "speaker_embedding_size": 4 if num_speakers > 1 else 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VitsModel(VitsConfig(**_FIELDS, **speakers)).eval()
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, **{letter: number for number, letter in enumerate(LETTERS, 1)}}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"tokenizer_class": "VitsTokenizer", "phonemize": False, "normalize": True, "add_blank": True}
    settings |= {"is_uroman": False, "language": "eng", "pad_token": "<pad>", "unk_token": "<pad>", **tokenizer}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def spoken(
    folder: Path, text: str, *, seed: int, speaker: int | None = None, rate: float | None = None, **noise: float
) -> "torch.Tensor":
    """Return the samples of transformers' VitsModel for a text, with the noise of a seed, `[F]`."""
    model = VitsModel.from_pretrained(folder).eval()
    for name, value in noise.items():
        setattr(model, name, value)
    inputs = VitsTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wave: torch.Tensor = model(**inputs, speaker_id=speaker, speaking_rate=rate).waveform[0]
    return wave
