"""Makes tiny configs by the names of the config's fields, for model types that have no row in the zoo."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.zoo.entry import VOCAB_SIZE, WINDOW

NUM_LAYERS = 4
# Less than the zoo's, because some of these types are deep for their number of layers and would lose all digits.
WEIGHT_SPREAD = 0.15

_FIELDS: tuple[tuple[Any, str], ...] = (
    (VOCAB_SIZE, "vocab_size n_vocab n_words padded_vocab_size text_vocab_size vocab_size_per_layer_input"),
    (64, "hidden_size n_embd d_model dim_model emb_dim embedding_size dim word_embed_proj_dim audio_vocab_size"),
    (96, "intermediate_size ffn_dim n_inner dim_ff encoder_ffn_dim decoder_ffn_dim d_inner feed_forward_size"),
    (96, "dense_intermediate_size intermediate_size_mlp dff"),
    (48, "shared_intermediate_size"),
    (32, "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
    (32, "expert_ffn_hidden_size expert_intermediate_size kv_lora_rank"),
    (24, "q_lora_rank"),
    (16, "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim"),
    (16, "global_head_dim mamba_d_head kv_channels attention_head_dim mamba_head_dim swa_head_dim swa_v_head_dim"),
    (16, "index_head_dim indexer_head_dim indexer_budget"),
    (NUM_LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers"),
    (NUM_LAYERS, "num_encoder_layers"),
    (4, "num_attention_heads n_head n_heads attention_heads encoder_attention_heads decoder_attention_heads"),
    (4, "num_heads linear_num_value_heads index_n_heads indexer_n_heads swa_num_attention_heads conv_kernel"),
    (4, "mamba_d_conv num_encoder_attention_heads num_decoder_attention_heads indexer_compress_ratio"),
    (2, "num_key_value_heads n_head_kv num_kv_heads linear_num_key_heads num_global_key_value_heads"),
    (2, "swa_num_key_value_heads indexer_kv_heads mamba_n_groups n_groups zero_expert_num"),
    (2, "num_experts_per_tok moe_topk moe_top_k moe_k n_activated_experts num_experts_per_token"),
    (8, "num_experts num_local_experts n_routed_experts moe_num_experts mamba_n_heads mamba_d_state state_size"),
    (8, "mamba_dt_rank time_step_rank hidden_size_per_layer_input laurel_rank mamba_chunk_size chunk_size"),
    (8, "mamba_num_heads ssm_state_size"),
    (1, "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace"),
    (512, "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx max_target_positions"),
    (WINDOW, "sliding_window window_size local_attention sliding_window_size attention_window_size"),
    (END_ID, "eos_token_id pad_token_id"),
    (BEGIN_ID, "bos_token_id"),
    (WEIGHT_SPREAD, "initializer_range init_std emb_init_std"),
)
_VALUES = {name: value for value, names in _FIELDS for name in names.split()}
# Fields that stay unset, because the missing value has a meaning.
_KEEP_UNSET = frozenset({"sliding_window", "n_inner", "q_lora_rank", "head_dim", "index_head_dim"})
_PARTS = frozenset({"text_config", "decoder", "encoder", "vision_config", "audio_config", "depth_decoder_config"})
_KINDS_OF_LAYERS = frozenset({"layer_types", "layers_block_type"})

_AS_MANY_KEY_HEADS = {"num_key_value_heads": 4}
_DECODER = {"is_decoder": True}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 2, 2]}
_SPARSE = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16}
# Values that do not follow from the names of fields.
_CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"), _AS_MANY_KEY_HEADS),
    **dict.fromkeys(("kimi_linear", "longcat_flash", "minicpm3", "youtu"), _AS_MANY_KEY_HEADS),
    **dict.fromkeys(("bert", "bert-generation", "roberta", "camembert", "data2vec-text", "electra"), _DECODER),
    **dict.fromkeys(("ernie", "megatron-bert", "rembert", "roberta-prelayernorm", "roc_bert"), _DECODER),
    **dict.fromkeys(("roformer", "xlm-roberta", "xlm-roberta-xl"), _DECODER),
    "bailing_hybrid": {**_AS_MANY_KEY_HEADS, "num_group": 2, "n_group": 2},
    "big_bird": {**_DECODER, "attention_type": "original_full"},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"full_attention": _PLAIN_ROPE, "sliding_attention": _PLAIN_ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 64},
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "hunyuan_v1_moe": {"head_dim": 16},
    "qwen4_exp": {"text_config": {**_SPARSE, "indexer_compress_ratio": 4}},
    "qwen4_exp_text": {**_SPARSE, "indexer_compress_ratio": 4},
    "reformer": {**_DECODER, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [32, 32]},
    "xlm": {"causal": True},
    "xmod": {**_DECODER, "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> Any:
    """Return a tiny config. Raises the errors of the config class, for values that do not fit each other."""
    fields = _shrink(AutoConfig.for_model(model_type).to_dict())
    return AutoConfig.for_model(model_type, **_merge(fields, _CORRECTIONS.get(model_type, {})))


def _shrink(fields: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _KINDS_OF_LAYERS and isinstance(value, list) and value:
            small[name] = (list(dict.fromkeys(value)) * NUM_LAYERS)[:NUM_LAYERS]
        elif isinstance(value, dict) and name in _PARTS:
            small[name] = {**_shrink(value), **({"model_type": value["model_type"]} if "model_type" in value else {})}
        elif value is None and name in _KEEP_UNSET:
            continue
        elif name in _VALUES and not isinstance(value, (list, dict, str, bool)):
            small[name] = _VALUES[name]
    return small


def _merge(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        both_are_parts = name in _PARTS and isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both_are_parts else value
    return merged
