"""Flat rows whose tokens go to some of several experts."""

from tests.zoo.entry import CHUNK, MULTI_HEAD, SMALL, WINDOW, ZooEntry

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

EXPERTS = (
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
        "granitemoe",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.2},
        "experts, multipliers",
    ),
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
)
