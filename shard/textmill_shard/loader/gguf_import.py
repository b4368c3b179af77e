"""Reads settings and weights of a GGUF file by a table of this engine, where transformers has no import."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import init_empty_weights
from gguf import GGUFReader, dequantize
from transformers import AutoConfig, AutoModelForCausalLM

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_config import read_tensors
from textmill_shard.loader.gguf_header import GgufHeader
from textmill_shard.loader.gguf_tables import GgufTable

_SCALES = ("attention.scale", "embedding_scale", "residual_scale")  # a zero says nothing, as in llama.cpp
_LAYER = re.compile(r"\.layers\.(\d+)\.")

Array = npt.NDArray[np.float32]


def read_settings(header: GgufHeader, table: GgufTable) -> dict[str, Any]:
    """Give the fields of `AutoConfig.to_dict()` as far as the keys of the table and the tensors' names say them."""
    values = header.of_model()
    names = {tensor.name: tensor for tensor in header.tensors}
    fields: dict[str, Any] = {
        field: values[key]
        for key, field in table.fields.items()
        if key in values and not (key in _SCALES and values[key] == 0.0)
    }
    if "attention.scale" in table.fields and not values.get("attention.scale"):
        width, heads = values.get("embedding_length"), values.get("attention.head_count")
        if isinstance(width, int) and isinstance(heads, int) and heads:
            fields[table.fields["attention.scale"]] = (width // heads) ** -0.5
    fields |= {field: name in names for field, name in table.flags.items()}
    fields["tie_word_embeddings"] = "output.weight" not in names
    if "token_embd.weight" in names:
        fields["vocab_size"] = names["token_embd.weight"].shape[0]
    settings: dict[str, Any] = AutoConfig.for_model(table.model_type, **fields).to_dict()
    return settings


def read_values(
    header: GgufHeader, table: GgufTable, config: Any
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """Give the model's weights by name, the names that the file lacks, and the tensors that no weight takes.

    Raises ModelFilesError for a tensor of another shape than the weight's.
    """
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {}) if config.tie_word_embeddings else {}
    stored = {tensor.name: tensor for tensor in GGUFReader(header.path).tensors}
    values: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    taken: set[str] = set()
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        sources = _sources(name, table)
        absent = [source for source in sources if source not in stored]
        if absent or not sources:
            missing += absent or [name]
            continue
        taken.update(sources)
        parts = [dequantize(stored[source].data, stored[source].tensor_type) for source in sources]
        value: Array = np.concatenate(parts, axis=-2) if len(parts) > 1 else parts[0]
        if value.shape != tuple(weight.shape):
            raise ModelFilesError(
                f"{header.path} holds {sources[0]} of the shape {list(value.shape)}, and a model of the sizes that the "
                f"file says has {list(weight.shape)}: fetch it again, or convert it anew"
            )
        values[name] = torch.from_numpy(np.array(_turned(value, name, table, config), order="C"))
    values |= {name: values[source] for name, source in tied.items() if source in values}
    left_over = sorted(set(stored) - taken - read_tensors(header))
    return values, missing, left_over


def _sources(name: str, table: GgufTable) -> tuple[str, ...]:
    layer = _LAYER.search(name)
    number = layer.group(1) if layer else ""
    sources = table.weights.get(_LAYER.sub(".layers.{n}.", name), ())
    return tuple(source.replace("{n}", number) for source in sources)


def _turned(value: Array, name: str, table: GgufTable, config: Any) -> Array:
    """The values in the order and with the offset of transformers' weight."""
    if table.norm_offset and name.endswith("norm.weight"):
        return value - np.float32(table.norm_offset)
    if table.is_paired and re.search(r"\.[qk]_proj\.", name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
        turned: Array = pairs.swapaxes(1, 2).reshape(value.shape)
        return turned
    return value
