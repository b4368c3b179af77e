"""Makes tiny random models of tasks without generation, in the folder layout of real models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from textmill_shard.tasks.rows import Params, Row
from transformers import AutoConfig

from tests.fakes.tiny_models import make_random_model

NUM_IDS = 300
PAD_ID, BEGIN_ID, END_ID, MASK_ID = 1, 0, 2, 3
_SMALL: dict[str, Any] = {
    "vocab_size": NUM_IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "pad_token_id": PAD_ID,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
}
# The fields in which a type of model departs from the small config.
TASK_ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "bert": {"type_vocab_size": 2, "eos_token_id": None},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "electra": {"embedding_size": 16, "type_vocab_size": 2},
    "albert": {"embedding_size": 16, "num_hidden_layers": 3},
    "ernie": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {
        "num_hidden_layers": 4,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "cls_token_id": BEGIN_ID,
        "sep_token_id": END_ID,
    },
    "mpnet": {},
    "deberta": {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 16,
        "max_relative_positions": 64,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "convbert": {"embedding_size": 32, "head_ratio": 2},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "squeezebert": {"embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "fnet": {"use_tpu_fourier_optimizations": False},
    "nomic_bert": {"rotary_emb_base": 1000, "type_vocab_size": 2},
    "eurobert": {"num_key_value_heads": 2, "head_dim": 8},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    },
    "t5": {"decoder_start_token_id": PAD_ID},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "llama": {"num_key_value_heads": 2},
}


_WITHOUT: Mapping[str, tuple[str, ...]] = {  # fields whose names these configs refuse
    "t5": ("num_hidden_layers", "hidden_size", "num_attention_heads"),
    "xlnet": ("max_position_embeddings", "num_hidden_layers", "hidden_size", "num_attention_heads"),
}


def make_task_model(folder: Path, model_type: str, auto_class: Any, *, seed: int = 0, **changes: Any) -> Any:
    """Write a tiny model of `TASK_ARCHITECTURES` with the head of a class of transformers, and return the model."""
    dropped = _WITHOUT.get(model_type, ())
    small = {name: value for name, value in _SMALL.items() if name not in dropped}
    fields = {**small, **TASK_ARCHITECTURES[model_type], **changes}
    config = AutoConfig.for_model(model_type, **fields)
    model = make_random_model(config, folder, seed=seed, auto_class=auto_class)
    with torch.no_grad():  # with the usual 0.02 all scores would be nearly equal
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<|end|>"})
    )
    return model.eval()


def random_rows(lengths: Sequence[int], *, seed: int = 0, params: Params = None) -> list[Row]:
    """Return rows of ids that are no special tokens but for the begin and the end of a text."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = random.integers(4, NUM_IDS, size=length)
        ids[0] = BEGIN_ID
        ids[-1] = END_ID
        rows.append(Row(token_ids=ids, token_types=None, params=params))
    return rows


def alone(model: Any, row: Row, **more: torch.Tensor) -> Any:
    """Return what transformers' own code computes for one row."""
    with torch.inference_mode():
        ids = torch.from_numpy(row.token_ids).unsqueeze(0)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
