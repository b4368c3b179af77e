"""What a config says of keys, values and states; the expected numbers are worked out by hand from published configs."""

from typing import Any

import pytest
from textmill_launcher.errors import ModelFilesError
from textmill_launcher.plan.model_shape import WrongConfigValue, read_shape

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def test_grouped_queries_keep_keys_and_values_of_the_groups() -> None:
    shape = read_shape(LLAMA_3_8B)
    assert shape.kv_elements_per_token == 32 * 2 * 8 * 128
    assert (shape.state_elements_per_slot, shape.max_model_tokens, shape.dtype) == (0, 8192, "bfloat16")
    assert [shape.kv_elements_of_rank(n) for n in (1, 4, 8, 16)] == [65536, 16384, 8192, 8192]
    assert shape.working_num_shards() == (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head_dim": 256}, 32 * 2 * 8 * 256),
        ({"num_key_value_heads": None}, 32 * 2 * 32 * 128),
        ({"multi_query": True}, 32 * 2 * 1 * 128),
        ({"new_decoder_architecture": True, "multi_query": True}, 32 * 2 * 32 * 128),
        ({"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}, 32 * 32 * 320),
        ({"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8}, 8 * 2048),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16}, 65536),
        ({"attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16}, 4 * 2048),
        ({"attn_layer_indices": [9, 18, 27], "mamba_d_state": 128}, 3 * 2048),
        ({"full_attention_interval": 4}, 8 * 2048),
    ],
)
def test_layers_and_heads_decide_what_is_kept(changes: dict[str, Any], expected: int) -> None:
    assert read_shape({**LLAMA_3_8B, **changes}).kv_elements_per_token == expected


def test_names_of_other_families_are_read() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    shape = read_shape(gpt2)
    assert (shape.hidden, shape.mlp, shape.num_layers, shape.max_model_tokens) == (768, 3072, 12, 1024)
    assert shape.kv_elements_per_token == 12 * 2 * 768


def test_text_part_of_a_config_counts() -> None:
    shape = read_shape({"model_type": "gemma3", "text_config": {**LLAMA_3_8B, "model_type": "gemma3_text"}})
    assert (shape.model_type, shape.num_layers) == ("gemma3_text", 32)


def test_scan_keeps_its_matrix_and_the_inputs_of_its_convolution() -> None:
    """mamba2-370m: 48 layers, 2048 channels, one group, 128 states, a kernel of 4."""
    mamba2 = {
        "model_type": "mamba2",
        **{"hidden_size": 1024, "num_hidden_layers": 48, "num_heads": 32, "head_dim": 64, "vocab_size": 50288},
        **{"state_size": 128, "n_groups": 1, "expand": 2, "conv_kernel": 4},
    }
    shape = read_shape(mamba2)
    assert shape.kv_elements_per_token == 0
    assert shape.state_elements_per_slot == 48 * ((2048 + 2 * 128) * 4 + 2048 * 128)
    assert shape.working_num_shards() == (1,)


def test_state_of_an_unknown_kind_is_said_to_be_unknown() -> None:
    assert read_shape({**LLAMA_3_8B, "layer_types": ["recurrent", "attention"] * 16}).state_elements_per_slot is None


def test_experts_of_a_token_count_together() -> None:
    changes = {"num_local_experts": 8, "num_experts_per_tok": 2}
    assert read_shape({**LLAMA_3_8B, **changes}).mlp == 2 * 14336
    assert read_shape({**LLAMA_3_8B, **changes, "moe_intermediate_size": 768}).mlp == 2 * 768


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_config_without_a_size_is_refused(missing: str) -> None:
    with pytest.raises(ModelFilesError, match="does not say"):
        read_shape({name: value for name, value in LLAMA_3_8B.items() if name != missing})


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "max_position_embeddings"])
def test_size_that_is_a_text_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(WrongConfigValue, match=f"has 'many' as {name}, where a whole number is wanted"):
        read_shape({**LLAMA_3_8B, name: "many"})
