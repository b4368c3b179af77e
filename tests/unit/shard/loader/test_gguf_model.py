"""Models of transformers, written as GGUF files, answer as before; what is not understood ends the conversion."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_cache import convert_gguf
from textmill_shard.loader.gguf_rope import llama3_divisors
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loader.token_ids import find_end_ids
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.fakes.gguf_files import END, MESSAGE, STOP, TOKENS, make_model, write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def convert(tmp_path: Path, model: Any, architecture: str, **how: Any) -> Path:
    write_gguf(tmp_path / "model.gguf", model, architecture, **how)
    return convert_gguf(tmp_path / "model.gguf", tmp_path / "cache", "float32")


def check_same(model: Any, folder: Path, *, length: int = 100) -> None:
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, len(TOKENS), (1, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = model(ids).logits, read(ids).logits
    # The file keeps epsilons and bases in 32 bits.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


LLAMA3_DIVISORS = numpy.array(llama3_divisors(500000.0, 8.0, num_pairs=8), dtype=numpy.float32)
OTHER_DIVISORS = numpy.linspace(1, 5, 8, dtype=numpy.float32)
LONG, SHORT = numpy.linspace(1, 4, 8, dtype=numpy.float32), numpy.linspace(1, 2, 8, dtype=numpy.float32)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 48}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2}
GRANITE = {
    "attention_multiplier": 0.4,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
GRANITE_KEYS = {"attention.scale": 0.4, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0}
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 16}


@pytest.mark.parametrize(
    ("architecture", "model_type", "config", "how"),
    [
        ("llama", "llama", {}, {}),
        ("llama", "llama", {"tie_word_embeddings": True}, {}),
        ("llama", "llama", {"attention_bias": True, "mlp_bias": True}, {}),
        ("llama", "llama", {"rope_parameters": LLAMA3}, {"extra": {"rope_freqs.weight": LLAMA3_DIVISORS}}),
        (
            "llama",
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
            {"values": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
        ),
        (
            "llama",
            "mistral",
            {"sliding_window": 16},
            {"values": {"attention.sliding_window": 16}},
        ),
        ("qwen2", "qwen2", {}, {}),
        (
            "qwen2",
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 10000.0,
                    "original_max_position_embeddings": 32,
                }
            },
            {
                "values": {
                    "rope.scaling.type": "yarn",
                    "rope.scaling.factor": 4.0,
                    "rope.scaling.original_context_length": 32,
                }
            },
        ),
        ("qwen3", "qwen3", {"head_dim": 24}, {}),
        # Left open: llama.cpp's values count, and not the defaults of a class.
        (
            "qwen3",
            "qwen3",
            {"head_dim": 16, "num_key_value_heads": 4},
            {
                "values": dict.fromkeys(
                    ("attention.head_count_kv", "attention.key_length", "rope.freq_base", "rope.dimension_count")
                )
            },
        ),
        ("qwen3moe", "qwen3_moe", {**EXPERTS, "head_dim": 24, "norm_topk_prob": True}, {"values": EXPERT_KEYS}),
        (
            "qwen2moe",
            "qwen2_moe",
            {**EXPERTS, "shared_expert_intermediate_size": 40},
            {"values": {**EXPERT_KEYS, "expert_shared_feed_forward_length": 40}},
        ),
        ("phi3", "phi3", {"sliding_window": 16}, {"values": {"attention.sliding_window": 16}}),
        (
            "phi3",
            "phi3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
            {"values": {"rope.dimension_count": 8}},
        ),
        (
            "phi3",
            "phi3",
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": SHORT.tolist(),
                    "long_factor": LONG.tolist(),
                    "original_max_position_embeddings": 64,
                    "attention_factor": 1.25,
                },
            },
            {
                "values": {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25},
                "extra": {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
            },
        ),
        (
            "gemma2",
            "gemma2",
            {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
            {
                "values": {
                    "attention.sliding_window": 16,
                    "attn_logit_softcapping": 5.0,
                    "final_logit_softcapping": 3.0,
                }
            },
        ),
        (
            "gemma3",
            "gemma3_text",
            {
                **GEMMA,
                "num_hidden_layers": 7,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            },
            {
                "values": {
                    "attention.sliding_window": 16,
                    "rope.scaling.type": "linear",
                    "rope.scaling.factor": 8.0,
                }
            },
        ),
        ("gemma", "gemma", {"head_dim": 24}, {}),
        (
            "phi2",
            "phi",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
            {"values": {"rope.dimension_count": 8}},
        ),
        ("command-r", "cohere", {"logit_scale": 0.25}, {"values": {"logit_scale": 0.25, "rope.scaling.type": "none"}}),
        (
            "command-r",
            "cohere",
            {"logit_scale": 0.25, "use_qk_norm": True},
            {"values": {"logit_scale": 0.25}},
        ),
        ("granite", "granite", GRANITE, {"values": GRANITE_KEYS}),
        (
            "granite",
            "granite",
            {**GRANITE, "attention_multiplier": 0.25, "tie_word_embeddings": True, "attention_bias": True},
            {"values": {**GRANITE_KEYS, "attention.scale": None}},
        ),
        ("granitemoe", "granitemoe", {**GRANITE, **LOCAL_EXPERTS}, {"values": {**GRANITE_KEYS, **LOCAL_EXPERT_KEYS}}),
        ("llama", "mixtral", LOCAL_EXPERTS, {"values": LOCAL_EXPERT_KEYS}),
        (
            "llama",
            "mixtral",
            {**LOCAL_EXPERTS, "sliding_window": 16},
            {"values": {**LOCAL_EXPERT_KEYS, "attention.sliding_window": 16, "expert_feed_forward_length": 96}},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_of_transformers_answers_as_before(
    tmp_path: Path, architecture: str, model_type: str, config: dict[str, Any], how: dict[str, Any]
) -> None:
    model = make_model(model_type, **config)
    check_same(model, convert(tmp_path, model, architecture, **how))


def test_divisors_of_llama_3_are_those_of_transformers() -> None:
    config = make_model("llama", rope_parameters=LLAMA3).config
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(numpy.arange(8) / 8)
    numpy.testing.assert_allclose(plain / LLAMA3_DIVISORS, frequencies.numpy(), rtol=1e-5)


def test_other_divisors_of_frequencies_are_kept_as_they_are(tmp_path: Path) -> None:
    model = make_model("llama")
    folder = convert(tmp_path, model, "llama", extra={"rope_freqs.weight": OTHER_DIVISORS})
    rotary = model.model.rotary_emb
    rotary.inv_freq /= torch.from_numpy(OTHER_DIVISORS)
    check_same(model, folder)
    load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None)


# ---- what is missing or left over


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"skip": ["blk.1.ffn_up.weight", "blk.1.ffn_down.weight"]}, r"lacks.*layers\.1\.mlp\.(down|up)_proj\.weight"),
        ({"skip": ["output_norm.weight"]}, r"lacks tensors of the model \(llama\): model\.norm\.weight"),
        ({"skip": ["token_embd.weight"]}, r"lacks.*model\.embed_tokens\.weight"),
        (
            {"extra": {"blk.0.attn_q.bias": numpy.full(64, 5.0), "blk.1.attn_q.bias": numpy.full(64, 5.0)}},
            r"no place for \(llama\): blk\.0\.attn_q\.bias, blk\.1\.attn_q\.bias",
        ),
        (
            {"extra": {"blk.0.ffn_gate_exps.weight": numpy.zeros((4, 96, 64))}, "skip": ["blk.0.ffn_gate.weight"]},
            r"no place for \(llama\): blk\.0\.ffn_gate_exps\.weight",
        ),
        ({"extra": {"blk.0.attn_sinks.weight": numpy.zeros(4)}}, r"blk\.0\.attn_sinks\.weight"),
        ({"values": {"expert_count": 4, "expert_used_count": 2}}, r"lacks tensors.*blk\.0\.ffn_down_exps\.weight"),
        ({"values": {"logit_scale": 0.5}}, r"llama\.logit_scale = 0\.5, which changes what the model computes"),
        ({"values": {"embedding_scale": 12.0}}, r"llama\.embedding_scale = 12\.0"),
        ({"values": {"attention.scale": 0.5}}, r"llama\.attention\.scale = 0\.5"),
        ({"values": {"attn_logit_softcapping": 50.0}}, r"llama\.attn_logit_softcapping = 50\.0"),
        ({"values": {"attention.causal": False}}, r"llama\.attention\.causal = False"),
        ({"values": {"some.new_key": 3}}, r"llama\.some\.new_key = 3"),
        ({"values": {"rope.dimension_count": 8}}, r"rotates 8 of 16 dimensions"),
        ({"values": {"rope.scaling.type": "ntk", "rope.scaling.factor": 4.0}}, "positions of the kind 'ntk'"),
        ({"values": {"rope.scaling.type": "ntk"}}, "positions of the kind 'ntk'"),
        ({"values": {"rope.scaling.type": "yarn", "rope.scaling.attn_factor": 2.0}}, "scales attention by 2.0"),
        (
            {"values": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}},
            "yarn positions without rope.scaling.original_context_length",
        ),
        ({"values": {"embedding_length": None}}, r"lacks llama\.embedding_length"),
        ({"values": {"attention.layer_norm_rms_epsilon": None}}, r"lacks llama\.attention\.layer_norm_rms_epsilon"),
        ({"tokenizer": {"tokenizer.ggml.eos_token_id": 99999}}, "99999 as tokenizer.ggml.eos_token_id"),
        ({"tokenizer": {"tokenizer.ggml.tokens": None}}, "has no tokenizer.ggml.tokens"),
    ],
)
def test_what_is_not_understood_ends_the_conversion(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFilesError, match=words):
        convert(tmp_path, make_model("llama"), "llama", **how)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "model_type", "values", "words"),
    [
        ("qwen2", "qwen2", {"attention.sliding_window": 16}, r"qwen2\.attention\.sliding_window = 16"),
        ("gemma3", "gemma3_text", {}, r"lacks gemma3\.attention\.sliding_window"),
        ("qwen2", "qwen2", {"rope.dimension_count": 8}, "rotates 8 of 16 dimensions"),
    ],
)
def test_windows_and_widths_that_a_config_would_not_use_are_refused(
    tmp_path: Path, architecture: str, model_type: str, values: dict[str, Any], words: str
) -> None:
    model = make_model(model_type, **({"head_dim": 16} if architecture == "gemma3" else {}))
    with pytest.raises(ModelFilesError, match=words):
        convert(tmp_path, model, architecture, values=values)


def test_a_half_of_the_experts_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Gate and up are one tensor of transformers, which fills a missing half with zeros."""
    model = make_model("qwen3_moe", **EXPERTS, head_dim=16)
    with pytest.raises(ModelFilesError, match=r"lacks tensors of the model \(qwen3moe\): blk\.1\.ffn_up_exps"):
        convert(tmp_path, model, "qwen3moe", values=EXPERT_KEYS, skip=["blk.1.ffn_up_exps.weight"])


@pytest.mark.parametrize(
    ("architecture", "model_type", "how", "words"),
    [
        ("gemma", "gemma", {"skip": ["blk.1.ffn_up.weight"]}, r"lacks tensors of the model \(gemma\): blk\.1\.ffn_up"),
        ("phi2", "phi", {"skip": ["output.bias"]}, r"lacks tensors of the model \(phi2\): output\.bias"),
        ("phi2", "phi", {"extra": {"blk.0.attn_qkv.bias": numpy.zeros(3)}}, r"no place for \(phi2\): blk\.0\.attn_qkv"),
        ("granite", "granite", {"values": {"logit_scale": None}}, r"lacks granite\.logit_scale"),
        ("granite", "granite", {"values": {"some.key": 3, "logit_scale": 2.0}}, r"granite\.some\.key = 3"),
        ("command-r", "cohere", {}, r"lacks command-r\.logit_scale"),
        ("llama", "mixtral", {"values": {"expert_count": 4}}, r"lacks llama\.expert_used_count"),
        (
            "llama",
            "mixtral",
            {"values": {"expert_count": 2, "expert_used_count": 2}},
            r"blk\.0\.ffn_gate_inp\.weight of the shape \[4, 64\].* has \[2, 64\]",
        ),
        (
            "llama",
            "mixtral",
            {"values": {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 7}},
            r"llama\.expert_feed_forward_length = 7",
        ),
        (
            "llama",
            "mixtral",
            {"values": {"expert_count": 4, "expert_used_count": 2}, "skip": ["blk.1.ffn_up_exps.weight"]},
            r"lacks tensors.*blk\.1\.ffn_up_exps\.weight",
        ),
    ],
)
def test_what_is_missing_or_left_over_is_named_for_tables_of_our_own(
    tmp_path: Path, architecture: str, model_type: str, how: dict[str, Any], words: str
) -> None:
    changes = {"gemma": {"head_dim": 16}, "mixtral": LOCAL_EXPERTS}.get(model_type, {})
    with pytest.raises(ModelFilesError, match=words):
        convert(tmp_path, make_model(model_type, **changes), architecture, **how)
    assert list((tmp_path / "cache").iterdir()) == []


def test_values_that_change_nothing_are_no_reason(tmp_path: Path) -> None:
    neutral = {"logit_scale": 1.0, "expert_count": 0, "attention.causal": True, "attention.scale": 0.25}
    model = make_model("llama")
    check_same(model, convert(tmp_path, model, "llama", values={**neutral, "vocab_size": len(TOKENS)}))


# ---- ends of texts


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        ({}, (STOP,)),
        ({"eot": END}, (STOP, END)),
        ({"eot": END, "eom": MESSAGE}, (STOP, END, MESSAGE)),
        ({"eot": STOP}, (STOP,)),
        ({"bos": None, "eos": None}, ()),
        ({"bos": None, "eos": None, "eot": MESSAGE}, (MESSAGE,)),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_all_ends_of_the_file_and_no_others_end_a_text(
    tmp_path: Path, architecture: str, keys: dict[str, int | None], ends: tuple[int, ...]
) -> None:
    model = make_model(architecture)
    folder = convert(
        tmp_path,
        model,
        architecture,
        tokenizer={f"tokenizer.ggml.{key}_token_id": value for key, value in keys.items()},
    )
    assert find_end_ids(folder).within(len(TOKENS)) == ends
    config = json.loads((folder / "config.json").read_text())
    assert config.get("bos_token_id") == (None if "bos" in keys else END)
    assert config.get("pad_token_id") is None
