"""GGUF architectures that transformers does not import: which key is which field, which tensor is which weight.

Names and turns of values are those that llama.cpp's converter writes (convert_hf_to_gguf.py) and that its graphs read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from textmill_shard.loader.gguf_header import GgufHeader


@dataclass(frozen=True, slots=True)
class GgufTable:
    """One architecture. `{n}` stands for the number of a layer.

    `fields`: the config's field by key. `weights`: the file's tensors by the name of the weight; several lie side by
    side in the last but one dimension. `flags`: fields that are true where the file has a tensor of that name.
    """

    model_type: str
    fields: Mapping[str, str]
    weights: Mapping[str, tuple[str, ...]]
    flags: Mapping[str, str] = field(default_factory=dict)
    is_paired: bool = False  # both numbers of a rotary pair of query and key lie side by side
    norm_offset: float = 0.0  # in the file above the model's weights of norms
    required: tuple[str, ...] = ()  # keys without which llama.cpp reads no such file


_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_RMS = {**_SIZES, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_NORM = {**_SIZES, "attention.layer_norm_epsilon": "layer_norm_eps"}
_LAYER = "model.layers.{n}."


def _both(weights: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Weights and biases."""
    return {f"{name}.{part}": (f"{stem}.{part}",) for name, stem in weights.items() for part in ("weight", "bias")}


_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ATTENTION = {
    f"{_LAYER}self_attn.q_proj": "blk.{n}.attn_q",
    f"{_LAYER}self_attn.k_proj": "blk.{n}.attn_k",
    f"{_LAYER}self_attn.v_proj": "blk.{n}.attn_v",
    f"{_LAYER}self_attn.o_proj": "blk.{n}.attn_output",
    f"{_LAYER}input_layernorm": "blk.{n}.attn_norm",
    f"{_LAYER}post_attention_layernorm": "blk.{n}.ffn_norm",
}
_GATED = {
    f"{_LAYER}mlp.gate_proj": "blk.{n}.ffn_gate",
    f"{_LAYER}mlp.up_proj": "blk.{n}.ffn_up",
    f"{_LAYER}mlp.down_proj": "blk.{n}.ffn_down",
}
_QUERY_NORMS = {f"{_LAYER}self_attn.q_norm": "blk.{n}.attn_q_norm", f"{_LAYER}self_attn.k_norm": "blk.{n}.attn_k_norm"}
_EXPERTS = ("blk.{n}.ffn_gate_exps.weight", "blk.{n}.ffn_up_exps.weight")

_GEMMA = GgufTable("gemma", _RMS, _both({**_ENDS, **_ATTENTION, **_GATED}), norm_offset=1.0)
_PHI = GgufTable(
    "phi",
    _NORM,
    _both(
        {
            **{name: stem for name, stem in _ENDS.items() if name != "model.norm"},
            "model.final_layernorm": "output_norm",
            **{name: stem for name, stem in _ATTENTION.items() if name.endswith(("q_proj", "k_proj", "v_proj"))},
            f"{_LAYER}input_layernorm": "blk.{n}.attn_norm",
            f"{_LAYER}self_attn.dense": "blk.{n}.attn_output",
            f"{_LAYER}mlp.fc1": "blk.{n}.ffn_up",
            f"{_LAYER}mlp.fc2": "blk.{n}.ffn_down",
        }
    ),
)
_COHERE = GgufTable(
    "cohere",
    {**_NORM, "logit_scale": "logit_scale"},
    _both({**_ENDS, **_ATTENTION, **_GATED, **_QUERY_NORMS}),
    flags={"use_qk_norm": "blk.0.attn_q_norm.weight"},
    required=("logit_scale",),
)
_GRANITE_FIELDS = {
    **_RMS,
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_GRANITE = GgufTable(
    "granite",
    _GRANITE_FIELDS,
    _both({**_ENDS, **_ATTENTION, **_GATED}),
    is_paired=True,
    required=("logit_scale",),
)
_USED_EXPERTS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_GRANITE_MOE = GgufTable(
    "granitemoe",
    {**_GRANITE_FIELDS, **_USED_EXPERTS},
    {
        **_both({**_ENDS, **_ATTENTION}),
        f"{_LAYER}block_sparse_moe.router.weight": ("blk.{n}.ffn_gate_inp.weight",),
        f"{_LAYER}block_sparse_moe.experts.gate_up_proj": _EXPERTS,
        f"{_LAYER}block_sparse_moe.experts.down_proj": ("blk.{n}.ffn_down_exps.weight",),
    },
    is_paired=True,
    required=("logit_scale",),
)
_MIXTRAL = GgufTable(
    "mixtral",
    {**_RMS, **_USED_EXPERTS},
    {
        **_both({**_ENDS, **_ATTENTION}),
        f"{_LAYER}mlp.gate.weight": ("blk.{n}.ffn_gate_inp.weight",),
        f"{_LAYER}mlp.experts.gate_up_proj": _EXPERTS,
        f"{_LAYER}mlp.experts.down_proj": ("blk.{n}.ffn_down_exps.weight",),
    },
    is_paired=True,
)
_TABLES = {
    "gemma": _GEMMA,
    "phi2": _PHI,
    "command-r": _COHERE,
    "granite": _GRANITE,
    "granitemoe": _GRANITE_MOE,
}


def table_of(header: GgufHeader) -> GgufTable | None:
    """Give the table for the file, None where transformers imports its architecture.

    Mixtral has the name of llama in the format, and experts.
    """
    if header.architecture == "llama" and header.of_model().get("expert_count", 0) != 0:
        return _MIXTRAL
    return _TABLES.get(header.architecture)
