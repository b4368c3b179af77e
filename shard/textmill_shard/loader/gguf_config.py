"""Turns the metadata of a GGUF file into the config from which transformers builds the model.

transformers' own import reads the shapes. The rest is read here: scaling of rotary positions, sliding windows, caps of
logits, widths of heads and experts. A value that is read nowhere ends the conversion, unless the value changes nothing.
The meaning of the keys is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformers.integrations import GGUF_CONFIG_MAPPING

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_header import GgufHeader, Value
from textmill_shard.loader.gguf_rope import ROPE_KEYS, ROPE_TENSORS, complete_rope
from textmill_shard.loader.gguf_tables import table_of

# Fields of the config that take a value of the file as it stands, where the config has the field.
_FIELDS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
# Values with which a key changes nothing.
_NEUTRAL: Mapping[str, tuple[Value, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.temperature_scale": (0.0, 1.0),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "tensor_data_layout": ("Meta AI original pth",),
    "attention.sliding_window": (0,),
}
# Keys that transformers' newer import reads; its table of the others is GGUF_CONFIG_MAPPING.
_READ_BY_NEWER_IMPORT = {
    "lfm2": frozenset({"attention.head_count_kv", "shortconv.l_cache"}),
    "qwen35": frozenset(
        {
            *("attention.key_length", "full_attention_interval", "nextn_predict_layers", "rope.dimension_count"),
            *("rope.dimension_sections", "rope.freq_base", "ssm.conv_kernel", "ssm.group_count", "ssm.inner_size"),
            *("ssm.state_size", "ssm.time_step_rank", "attention.layer_norm_rms_epsilon", "block_count"),
            *("context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
            *("attention.head_count_kv", "expert_count", "expert_used_count", "expert_feed_forward_length"),
            *("expert_shared_feed_forward_length",),
        }
    ),
}
# Keys without which there is no model; transformers would fill their fields with those of another model.
_REQUIRED = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "expert_count", "expert_used_count"),
)
# Layers of the models whose attention is scaled by the width of the hidden state over the heads, as in llama.cpp,
# because no key says so; all others are scaled by the width of a head.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
# A full layer follows this many minus one layers with a window.
_WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6}


def complete_config(settings: Mapping[str, Any], header: GgufHeader) -> dict[str, Any]:
    """Give the settings that transformers read from the file with all that the file says beside them.

    `settings` has the fields of `AutoConfig.to_dict()`. Raises ModelFilesError for a value that is read nowhere.
    """
    done = dict(settings)
    values = header.of_model()
    table = _table(header, str(settings["model_type"]))
    _check_required(values, done, table, header)
    _fill_absent(done, values, table)
    for key, field in _FIELDS.items():
        if key in values and field in done and values[key] not in _NEUTRAL.get(key, ()):
            done[field] = values[key]
    _set_biases(done, header)
    _set_gemma(done, values, header.architecture)
    complete_rope(done, values, header)
    _check_ids(header)
    for key, value in values.items():
        if not _is_read(key, value, done, values, header):
            raise ModelFilesError(
                f"{header.path} has {header.architecture}.{key} = {_short(value)}, which changes what the model "
                f"computes and is not read here{_advice(key)}: serve the model's safetensors instead"
            )
    # A file says which tokens mean something; the defaults of a config's class are those of another model.
    for field, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        done[field] = header.values.get(f"tokenizer.ggml.{key}_token_id")
    return done


def end_ids(header: GgufHeader) -> list[int]:
    """Give the ids of the tokens that end a text: end of text, of turn, of message, each once."""
    keys = (f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
    found = [header.values[key] for key in keys if key in header.values]
    return list(dict.fromkeys(token_id for token_id in found if isinstance(token_id, int)))


def as_windowed(settings: Mapping[str, Any], header: GgufHeader) -> dict[str, Any]:
    """Give the settings of a llama with a sliding window, which transformers calls mistral; others as they are."""
    window = header.of_model().get("attention.sliding_window")
    if settings["model_type"] != "llama" or not window:
        return dict(settings)
    own = ("attention_bias", "mlp_bias", "pretraining_tp")
    kept = {field: value for field, value in settings.items() if field not in own}
    return {**kept, "model_type": "mistral", "sliding_window": window}


def read_tensors(header: GgufHeader) -> frozenset[str]:
    """Give the names of the tensors that became settings of the config."""
    return frozenset(tensor.name for tensor in header.tensors) & ROPE_TENSORS


def _is_read(
    key: str, value: Value, settings: Mapping[str, Any], values: Mapping[str, Value], header: GgufHeader
) -> bool:
    model_type = str(settings["model_type"])
    table = _table(header, model_type)
    newer = _READ_BY_NEWER_IMPORT.get(header.architecture.removesuffix("moe"), frozenset())
    if table.get(key) is not None or key in newer or key in ROPE_KEYS or key == "context_length":
        return True
    if value in _NEUTRAL.get(key, ()):
        return True
    if key == "attention.sliding_window" and "use_sliding_window" in settings:
        return False  # Qwen has windows in some layers only, and the file does not say in which
    if key in _FIELDS and _FIELDS[key] in settings:
        return True
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    head_dim = settings.get("head_dim") or (hidden // heads if hidden and heads else None)
    if key in ("attention.key_length", "attention.value_length"):
        return value == head_dim
    if key == "attention.scale" and head_dim and isinstance(value, float):
        return value == 0.0 or math.isclose(value, head_dim**-0.5, rel_tol=1e-5)
    if key == "expert_feed_forward_length":
        return "num_local_experts" in settings and value == settings.get("intermediate_size")
    if key == "attention.sliding_window":
        return model_type == "llama"  # `as_windowed` takes the value
    if key == "attention.sliding_window_pattern":
        return "layer_types" in settings
    if key == "use_parallel_residual":
        return bool(settings.get("use_parallel_residual", value) == value)
    if key == "feed_forward_length":
        return isinstance(hidden, int) and value == 4 * hidden
    return key == "vocab_size" and value == settings.get("vocab_size")


def _table(header: GgufHeader, model_type: str) -> Mapping[str, str | None]:
    """Give which field of the config is filled from which key: by this engine, or by transformers' older import."""
    own = table_of(header)
    if own is not None:
        return {**own.fields}
    found: Mapping[str, str | None] | None = GGUF_CONFIG_MAPPING.get(header.architecture)
    return found or GGUF_CONFIG_MAPPING.get(model_type) or {}


def _check_required(
    values: Mapping[str, Value], settings: Mapping[str, Any], table: Mapping[str, str | None], header: GgufHeader
) -> None:
    """Raises ModelFilesError for a size that the file leaves open and that the config's class would fill."""
    own = table_of(header)
    wanted = [key for key in _REQUIRED if table.get(key) is not None]
    wanted += own.required if own is not None else ()
    if "moe_intermediate_size" in settings:
        wanted.append("expert_feed_forward_length")
    if header.architecture == "gemma3":
        wanted.append("attention.sliding_window")
    absent = [key for key in wanted if key not in values]
    if absent:
        raise ModelFilesError(
            f"{header.path} lacks {', '.join(f'{header.architecture}.{key}' for key in absent)}: it is incomplete, "
            "convert the model again with a current llama.cpp"
        )


def _fill_absent(settings: dict[str, Any], values: Mapping[str, Value], table: Mapping[str, str | None]) -> None:
    """Set what llama.cpp takes where a file leaves a value open, in place of the defaults of the config's class."""
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if not (isinstance(hidden, int) and isinstance(heads, int) and heads):
        return
    if "attention.head_count_kv" not in values and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = heads
    if "attention.key_length" not in values and "head_dim" in settings and table.get("rope.dimension_count") is None:
        settings["head_dim"] = hidden // heads


def _set_biases(settings: dict[str, Any], header: GgufHeader) -> None:
    names = {tensor.name for tensor in header.tensors}
    for field, name in (("attention_bias", "blk.0.attn_output.bias"), ("mlp_bias", "blk.0.ffn_down.bias")):
        if field in settings:
            settings[field] = name in names


def _set_gemma(settings: dict[str, Any], values: Mapping[str, Value], architecture: str) -> None:
    if architecture not in _WINDOW_PATTERN:
        return
    layers, heads, hidden = (settings[name] for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    is_27b = layers == _LAYERS_OF_27B[architecture]
    settings["query_pre_attn_scalar"] = hidden // heads if is_27b else settings["head_dim"]
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        # Gemma 2 has caps that older files do not name; llama.cpp has the same defaults.
        if values.get(field) == 0.0 or (field not in values and architecture != "gemma2"):
            settings[field] = None
    pattern = values.get("attention.sliding_window_pattern", _WINDOW_PATTERN[architecture])
    windowed = pattern if isinstance(pattern, list) else [bool((layer + 1) % int(pattern)) for layer in range(layers)]
    settings["layer_types"] = ["sliding_attention" if each else "full_attention" for each in windowed]
    settings.pop("_sliding_window_pattern", None)


def _check_ids(header: GgufHeader) -> None:
    """Raises ModelFilesError for a token id of the file that is none of its tokens."""
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ModelFilesError(f"{header.path} has no tokenizer.ggml.tokens: it holds a model without a tokenizer")
    for key, value in header.values.items():
        if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(tokens):
            raise ModelFilesError(
                f"{header.path} has {value!r} as {key}, and the file knows the tokens 0 to {len(tokens) - 1}: take the "
                "key out, or give the id of a token"
            )


def _advice(key: str) -> str:
    return " (experts under this architecture's name)" if key.startswith("expert_") else ""


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
