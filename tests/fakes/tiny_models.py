"""Tiny random models in the folder layout of real ones: config, safetensors, byte-level tokenizer. Seeded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID, write_byte_tokenizer

VOCAB_SIZE = 320  # 256 bytes, two special tokens, the rest is never written by the tokenizer
# Larger than the usual 0.02: small random models answer with nearly flat logits otherwise, and hide differences.
WEIGHT_SPREAD = 0.25

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
    "initializer_range": WEIGHT_SPREAD,
}
SMALL_GPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
    "initializer_range": WEIGHT_SPREAD,
}
MULTI_HEAD = {**SMALL, "num_key_value_heads": 4}

# What each architecture is known for is switched on: windows are shorter than the prompts of the tests, caps bite.
ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "llama": {**SMALL, "rope_theta": 1000.0},
    "mistral": {**SMALL, "sliding_window": 12},
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 24},
    "gpt2": SMALL_GPT,
    "gpt_neox": {**MULTI_HEAD, "rotary_pct": 0.5},
    "opt": {**MULTI_HEAD, "ffn_dim": 96, "word_embed_proj_dim": 48, "init_std": WEIGHT_SPREAD},
    "phi": {**SMALL, "partial_rotary_factor": 0.5},
    "phi3": SMALL,
    "gemma2": {
        **SMALL,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "sliding_window": 12,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {
        **SMALL,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "sliding_window": 12,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "stablelm": MULTI_HEAD,
    "starcoder2": {**SMALL, "sliding_window": 12},
    "cohere": {**SMALL, "logit_scale": 0.5},
    "granite": {**SMALL, "logits_scaling": 3.0, "attention_multiplier": 0.2, "embedding_multiplier": 2.0},
    "olmo2": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def make_tiny_model(folder: Path, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Writes a model of `ARCHITECTURES[model_type]` with the given config fields changed; gives the folder."""
    config = AutoConfig.for_model(model_type, **{**ARCHITECTURES[model_type], **changes})
    write_byte_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Biases and norm weights start as zeros and ones: a mixed-up one would go unnoticed.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def make_tiny_llama(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = VOCAB_SIZE,
    tie: bool = False,
    eos: int | list[int] = END_ID,
    mlp: int = 96,
    max_position_embeddings: int = 512,
    seed: int = 0,
) -> Path:
    """Writes a llama with grouped queries; `eos` also goes into generation_config.json. Gives the folder."""
    make_tiny_model(
        folder,
        "llama",
        seed=seed,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        tie_word_embeddings=tie,
        intermediate_size=mlp,
        max_position_embeddings=max_position_embeddings,
        eos_token_id=eos if isinstance(eos, int) else eos[0],
        pad_token_id=None,
    )
    generation_config = {"bos_token_id": BEGIN_ID, "eos_token_id": eos, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder
