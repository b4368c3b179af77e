"""Flat rows without experts."""

from tests.zoo.entry import MULTI_HEAD, SMALL, SMALL_GPT, VOCAB_SIZE, WEIGHT_SPREAD, WINDOW, ZooEntry

MIXED_LAYERS = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": WINDOW,
}

DENSE = (
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
    ZooEntry("glm4", {**SMALL, "head_dim": 16, "partial_rotary_factor": 0.5}, "half of each head rotates"),
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
)
