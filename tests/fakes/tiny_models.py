"""Makes tiny random models from a seed, in the folder layout of real models, with a byte-level tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID, write_byte_tokenizer
from tests.zoo.dense import DENSE
from tests.zoo.entry import SMALL, VOCAB_SIZE
from tests.zoo.experts import EXPERTS

__all__ = ["ARCHITECTURES", "SMALL", "VOCAB_SIZE", "make_random_model", "make_tiny_llama", "make_tiny_model"]

# Rows of the zoo, for tests that need one model of each kind.
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    entry.type_of_config: entry.config
    for entry in (*DENSE, *EXPERTS)
    if entry.name
    in (
        *("llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2", "gpt_neox", "opt", "phi", "phi3", "gemma2"),
        *("gemma3", "stablelm", "starcoder2", "cohere", "granite", "olmo2", "mixtral"),
    )
}


def make_random_model(
    config: Any, folder: Path, *, seed: int = 0, auto_class: Any = AutoModelForCausalLM, **how: Any
) -> Any:
    """Write a random float32 model with a byte-level tokenizer, and return the model. `how` goes to transformers."""
    write_byte_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class.from_config(config, dtype=torch.float32, **how)
        # Biases and norm weights start as zeros and ones, among which a test could not see that two are exchanged.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        # The same holds for buffers that checkpoints store: biases of logits (Marian) and of the choice of experts.
        stored = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in stored and buffer.is_floating_point():
                buffer.add_(torch.randn_like(buffer), alpha=0.1)
    model.save_pretrained(folder)
    return model.eval()


def make_tiny_model(folder: Path, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a model of `ARCHITECTURES[model_type]` with these config fields changed, and return the folder."""
    config = AutoConfig.for_model(model_type, **{**ARCHITECTURES[model_type], **changes})
    make_random_model(config, folder, seed=seed)
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
    """Write a llama with grouped queries, and return the folder. `eos` also goes into generation_config.json."""
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
