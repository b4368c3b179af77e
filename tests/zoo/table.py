"""The zoo: one tiny random model per architecture that is served. Each exercises what its model is known for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID

VOCAB_SIZE = 320
WINDOW = 12  # tokens; the longest prompts are four times that
CHUNK = 16  # tokens, of chunked attention
# Logits relative to the largest one, fp32: sums are taken in another order.
TOLERANCE = 2e-5
# Larger than the usual 0.02: small random models answer with nearly flat logits otherwise, and hide differences.
WEIGHT_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One architecture. `config` are the fields of its tiny model."""

    name: str
    config: Mapping[str, Any]
    known_for: str  # what the tiny config has switched on
    model_type: str = ""  # of config.json; the name when empty
    layout: str = "flat"
    tolerance: float = TOLERANCE
    reason: str = ""  # why the tolerance is looser than TOLERANCE
    rope_border: int | None = None  # tokens; requests of more take the long rotary table
    attention: str = "eager"  # transformers' implementation that the reference runs with
    longest_text: int | None = None  # tokens; the reference sees one first, so that its dynamic table is that of it

    @property
    def type_of_config(self) -> str:
        return self.model_type or self.name


SMALL: Mapping[str, Any] = {
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
MULTI_HEAD = {**SMALL, "num_key_value_heads": 4}
SMALL_GPT: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
    "initializer_range": WEIGHT_SPREAD,
}
MANY_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
DEEPSEEK = {
    **MULTI_HEAD,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "head_dim": 16,
}
MIXED_LAYERS = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": WINDOW,
}
BORDER = 30  # tokens, prompt and output: two of the four requests lie on each side
LONG_ROPE = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": BORDER,
    "rope_scaling": {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "original_max_position_embeddings": BORDER,
    },
}

FLAT = (
    ZooEntry("llama", {**SMALL, "rope_theta": 1000.0}, "grouped queries"),
    ZooEntry("mistral", {**SMALL, "sliding_window": WINDOW}, "a window on every layer"),
    ZooEntry("ministral", {**SMALL, **MIXED_LAYERS, "head_dim": 16}, "windows on some layers"),
    ZooEntry("qwen2", SMALL, "biases of query, key and value"),
    ZooEntry("qwen3", {**SMALL, "head_dim": 24}, "norms of query and key, heads of a width of their own"),
    ZooEntry("gemma", {**SMALL, "head_dim": 24}, "scaled embedding"),
    ZooEntry(
        "gemma2",
        {
            **SMALL,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        "caps on scores and logits, windows on every other layer",
    ),
    ZooEntry(
        "gemma3",
        {**SMALL, **MIXED_LAYERS, "head_dim": 16, "query_pre_attn_scalar": 24},
        "windows with rotary positions of their own",
        model_type="gemma3_text",
    ),
    ZooEntry(
        "gemma3n",
        {
            **SMALL,
            "head_dim": 16,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "sliding_window": WINDOW,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "intermediate_size": [96] * 6,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
            "final_logit_softcapping": 5.0,
        },
        "layers that share K and V, per-layer embeddings",
        model_type="gemma3n_text",
    ),
    ZooEntry("mixtral", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}, "experts"),
    ZooEntry(
        "qwen2_moe",
        {
            **SMALL,
            **MANY_EXPERTS,
            "shared_expert_intermediate_size": 48,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
        },
        "experts and a shared one, a dense layer between",
    ),
    ZooEntry("qwen3_moe", {**SMALL, **MANY_EXPERTS, "head_dim": 24, "num_hidden_layers": 3}, "experts, head norms"),
    ZooEntry(
        "olmoe",
        {**SMALL, "num_experts": 8, "num_experts_per_tok": 2, "clip_qkv": 3.0},
        "experts, clipped query, key and value",
    ),
    ZooEntry(
        "granite",
        {
            **SMALL,
            "logits_scaling": 3.0,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.7,
        },
        "multipliers",
    ),
    ZooEntry(
        "granitemoe",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.2},
        "experts, multipliers",
    ),
    ZooEntry("glm4", {**SMALL, "head_dim": 16, "partial_rotary_factor": 0.5}, "half of each head rotates"),
    ZooEntry(
        "glm4_moe",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 2,
            "topk_group": 1,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
        },
        "groups of experts after a dense layer",
    ),
    ZooEntry(
        "minimax_m2",
        {**SMALL, "num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 24, "rotary_dim": 8},
        "experts, norms over all heads",
    ),
    ZooEntry(
        "gpt_oss",
        {
            **SMALL,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": WINDOW,
        },
        "sinks, windows, experts with biases",
    ),
    ZooEntry("gpt2", SMALL_GPT, "learned positions"),
    ZooEntry("gpt_neox", {**MULTI_HEAD, "rotary_pct": 0.5}, "parallel residual, part of each head rotates"),
    ZooEntry("gpt_bigcode", {**SMALL_GPT, "multi_query": True}, "one key/value head"),
    ZooEntry(
        "opt",
        {**MULTI_HEAD, "ffn_dim": 96, "word_embed_proj_dim": 48, "init_std": WEIGHT_SPREAD},
        "shifted positions, projected embedding",
    ),
    ZooEntry("biogpt", MULTI_HEAD, "shifted positions"),
    ZooEntry("phi", {**SMALL, "partial_rotary_factor": 0.5}, "part of each head rotates"),
    ZooEntry("phi3", {**SMALL, "sliding_window": WINDOW}, "fused query, key and value; a window"),
    ZooEntry(
        "phimoe",
        {
            **SMALL,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "attention_bias": True,
            "lm_head_bias": True,
        },
        "a window that only the mask knows, experts",
    ),
    ZooEntry("starcoder2", {**SMALL, "sliding_window": WINDOW}, "a window"),
    ZooEntry(
        "stablelm",
        {**MULTI_HEAD, "qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
        "norms per head",
    ),
    ZooEntry("persimmon", {**MULTI_HEAD, "qk_layernorm": True}, "query, key and value interleaved by head"),
    ZooEntry("cohere", {**SMALL, "logit_scale": 0.5, "use_qk_norm": True}, "parallel block, neighbouring pairs rotate"),
    ZooEntry(
        "cohere2",
        {**SMALL, **MIXED_LAYERS, "head_dim": 16, "logit_scale": 0.5},
        "windows with positions, whole layers without",
    ),
    ZooEntry("olmo2", SMALL, "norms after the layers and over all heads"),
    ZooEntry("nemotron", {**SMALL, "partial_rotary_factor": 0.5}, "squared ReLU, norms around one"),
    ZooEntry(
        "exaone4",
        {**SMALL, **MIXED_LAYERS, "head_dim": 16},
        "windows with positions, whole layers without",
    ),
    ZooEntry(
        "smollm3",
        {**SMALL, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]},
        "layers without positions",
    ),
    ZooEntry("ernie4_5", {**SMALL, "head_dim": 16, "use_bias": True}, "neighbouring pairs rotate"),
    ZooEntry("seed_oss", {**SMALL, "head_dim": 24}, "biases, heads of a width of their own"),
    ZooEntry("arcee", SMALL, "squared ReLU"),
    ZooEntry("helium", {**SMALL, "head_dim": 16}, "neighbouring pairs rotate"),
    ZooEntry("hunyuan", {**SMALL, "head_dim": 16}, "head norms after the rotation", model_type="hunyuan_v1_dense"),
    ZooEntry(
        "apertus",
        {
            **SMALL,
        },
        "learned activation, head norms",
    ),
    ZooEntry("deepseek_v2", {**DEEPSEEK, "topk_method": "group_limited_greedy"}, "latent keys and values, experts"),
    ZooEntry("deepseek_v3", DEEPSEEK, "latent keys and values of different width, groups of experts"),
    ZooEntry(
        "llama4",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": CHUNK,
            "no_rope_layers": [1, 1, 1, 0],
            "moe_layers": [1, 3],
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8,
            "attn_scale": 0.5,
        },
        "chunked layers, whole ones without positions whose scale grows with the position",
        model_type="llama4_text",
    ),
    ZooEntry(
        "phi3, long context",
        {**SMALL, **LONG_ROPE},
        "longrope: requests on both sides of the border in one batch",
        model_type="phi3",
        rope_border=BORDER,
    ),
    ZooEntry(
        "phimoe, long context",
        {
            **SMALL,
            **LONG_ROPE,
            "rope_scaling": {**LONG_ROPE["rope_scaling"], "short_mscale": 1.1, "long_mscale": 1.4},
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        "longrope with a scale per side",
        model_type="phimoe",
        rope_border=BORDER,
    ),
    ZooEntry(
        "llama, dynamic positions",
        {
            **SMALL,
            "max_position_embeddings": 4,
            "rope_scaling": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 32.0},
        },
        "a rotary table stretched to the longest text",
        model_type="llama",
        longest_text=128,
    ),
)

STATE = (
    ZooEntry(
        "mamba",
        {**SMALL, "state_size": 8, "conv_kernel": 4, "time_step_rank": 8, "expand": 2},
        "a selective scan, no attention",
        layout="state",
    ),
    ZooEntry(
        "mamba2",
        {**SMALL, "num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8, "expand": 2},
        "a scan in chunks, groups of heads, no attention",
        layout="state",
    ),
    ZooEntry(
        "qwen3_next",
        {
            **SMALL,
            **MANY_EXPERTS,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "shared_expert_intermediate_size": 32,
        },
        "gated delta rule and attention, experts",
        layout="state",
    ),
    ZooEntry(
        "qwen3_5",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "gated delta rule and attention",
        model_type="qwen3_5_text",
        layout="state",
        tolerance=5e-5,
        reason="the delta rule in chunks and token by token rounds differently, in transformers' cached forward too",
    ),
    ZooEntry(
        "jamba",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
        "a selective scan and attention, experts",
        layout="state",
    ),
    ZooEntry(
        "bamba",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 8,
        },
        "a scan in chunks and attention",
        layout="state",
    ),
    ZooEntry(
        "falcon_h1",
        {
            **SMALL,
            "head_dim": 16,
            "mamba_d_ssm": 128,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 8,
        },
        "scan and attention side by side in every layer",
        layout="state",
    ),
    ZooEntry(
        "granitemoehybrid",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "layer_types": ["mamba", "attention", "mamba", "attention"],
            "shared_intermediate_size": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 8,
        },
        "a scan in chunks and attention, experts",
        layout="state",
    ),
    ZooEntry(
        "lfm2",
        {**SMALL, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3},
        "short convolutions and attention",
        layout="state",
    ),
    ZooEntry(
        "olmo_hybrid",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "gated delta rule and attention",
        layout="state",
    ),
)

PADDED = (
    ZooEntry(
        "bloom",
        {**SMALL, "n_layer": 2, "n_head": 4},
        "alibi, norm of the embedding",
        layout="padded",
    ),
    ZooEntry(
        "mpt",
        {**SMALL, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
        "alibi",
        layout="padded",
    ),
    ZooEntry(
        "falcon",
        {**SMALL, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        "grouped keys and values, parallel residual, rotary positions",
        layout="padded",
    ),
    ZooEntry(
        "falcon, alibi",
        {**SMALL, "alibi": True, "new_decoder_architecture": False, "multi_query": True, "bias": True},
        "one key/value head, alibi",
        model_type="falcon",
        layout="padded",
        attention="sdpa",  # the eager one of transformers 5.23 adds alibi twice, in the mask and in the scores
    ),
    ZooEntry(
        "gptj", {**SMALL_GPT, "rotary_dim": 8}, "neighbouring pairs of a part of each head rotate", layout="padded"
    ),
    ZooEntry(
        "gpt_neo",
        {
            **SMALL,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
        "windows by a mask of its own",
        layout="padded",
    ),
    ZooEntry("codegen", {**SMALL_GPT, "rotary_dim": 8}, "query, key and value interleaved", layout="padded"),
    ZooEntry(
        "xglm",
        {**SMALL, "d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4, "init_std": WEIGHT_SPREAD},
        "sinusoidal positions, scaled embedding",
        layout="padded",
    ),
)

ZOO = (*FLAT, *STATE, *PADDED)
