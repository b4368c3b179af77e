"""GGUF files written from models of transformers, with the keys and turns of values that llama.cpp's converter writes.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and the names of the `gguf` package.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.byte_tokenizer import alphabet

TOKENS = [*alphabet(), "12", "<|end|>", "<|stop|>", "<|message|>"]
END, STOP, MESSAGE = 257, 258, 259
ORDINARY, CONTROL = 1, 3

SMALL: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": END,
    "eos_token_id": STOP,
    "pad_token_id": None,
}

Array = npt.NDArray[Any]


def make_model(model_type: str, **changes: Any) -> Any:
    """Give a random model of transformers in 32 bits, small enough for a test."""
    config = AutoConfig.for_model(model_type, **{**SMALL, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    *,
    values: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    skip: Sequence[str] = (),
    extra: Mapping[str, Array] | None = None,
    change: Callable[[str, Array], Array] = lambda name, value: value,
) -> None:
    """Write the file. `values` are keys of the model and `tokenizer` keys of the tokenizer; None takes a key out.

    `skip` and `extra` are tensors by their names in the file; `change` is asked for each tensor.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        **epsilon_of(config),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": head_dim,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        **(values or {}),
    }
    tokens: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [ORDINARY] * END + [CONTROL] * (len(TOKENS) - END),
        "tokenizer.ggml.merges": ["1 2"],
        "tokenizer.ggml.bos_token_id": END,
        "tokenizer.ggml.eos_token_id": STOP,
        **(tokenizer or {}),
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**{f"{architecture}.{key}": value for key, value in keys.items()}, **tokens}.items():
        _add(writer, key, value)
    for name, value in {**tensors_of(model, architecture), **(extra or {})}.items():
        if name not in skip:
            writer.add_tensor(name, numpy.ascontiguousarray(change(name, value), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: Any, architecture: str) -> dict[str, Array]:
    """Give a model's tensors under the names and in the form of the format."""
    config = model.config.get_text_config()
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        stem, _, suffix = name.rpartition(".")
        value = tensor.float().numpy()
        if architecture.startswith(("llama", "granite")) and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            value = paired(value, heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if name.endswith("experts.gate_up_proj"):
            gate, up = numpy.split(value, 2, axis=1)
            layer = name.split(".")[2]
            found |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
            continue
        if name.endswith("experts.down_proj"):
            found[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = value
            continue
        if stem.endswith("block_sparse_moe.router"):
            stem += ".layer"
        if name.endswith("shared_expert_gate.weight"):
            value = value[0]
        written = names.get_name(stem)
        assert written is not None, name
        found[f"{written}.{suffix}"] = value
    return found


def epsilon_of(config: Any) -> dict[str, float]:
    """Give the key of the epsilon: of a norm by squares, or of one around the mean."""
    if hasattr(config, "rms_norm_eps"):
        return {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    return {"attention.layer_norm_epsilon": config.layer_norm_eps}


def paired(value: Array, num_heads: int) -> Array:
    """The two halves of a rotary pair side by side, as the format keeps them for llama."""
    rows = value.shape[0]
    halves = value.reshape(num_heads, 2, rows // num_heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
