"""Prints what the shard measures for zoo models: `python -m tests.fakes.measured_memory FOLDER NAME...`.

Each model is made and measured in forked processes of their own, because memory that an earlier model has freed would
hide what the next one takes. Prints one JSON object for each model. NAME is `llama:mid` or `llama:big`.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.memory import KvMemoryOptions, plan_kv_memory
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.fakes.native_cases import native_cache_folder
from tests.fakes.tiny_models import make_random_model
from tests.zoo.table import ZOO

NUM_SLOTS = 64
MAX_STEP_TOKENS = 1024
# Large enough for memory to be what the model takes, and small enough for a test.
SIZES: Mapping[str, Mapping[str, int]] = {
    "mid": {
        **{"vocab_size": 6000, "hidden_size": 384, "intermediate_size": 1280, "ffn_dim": 1280, "num_hidden_layers": 3},
        **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "moe_intermediate_size": 512},
    },
    "big": {
        **{"vocab_size": 16000, "hidden_size": 512, "intermediate_size": 1536, "ffn_dim": 1536, "num_hidden_layers": 4},
        **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "moe_intermediate_size": 512},
    },
}


# Models whose encoder and decoder differ in all sizes, because a plan is of the decoder alone.
ENCODER_DECODERS: Mapping[str, Mapping[str, int]] = {
    "bart": {
        **{"vocab_size": 6000, "d_model": 384, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 6},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 900, "decoder_ffn_dim": 1280},
        **{"max_position_embeddings": 256, "decoder_start_token_id": 2},
    },
    "t5": {
        **{"vocab_size": 6000, "d_model": 384, "d_kv": 96, "d_ff": 1280, "num_layers": 4, "num_decoder_layers": 2},
        **{"num_heads": 6, "decoder_start_token_id": 0},
    },
}


def config_of(name: str, size: str) -> dict[str, Any]:
    """Return the config of a zoo entry with the fields that it has made larger, or of an encoder with a decoder."""
    if name in ENCODER_DECODERS:
        return {"type": name, **ENCODER_DECODERS[name]}
    entry = next(entry for entry in ZOO if entry.name == name)
    config = dict(entry.config)
    has_groups = config.get("num_key_value_heads") != config.get("num_attention_heads")
    num_layers = config["num_hidden_layers"]
    config |= {key: value for key, value in SIZES[size].items() if key in config}
    if num_layers > 2:  # the kinds of layers are listed
        config["num_hidden_layers"] = num_layers
    if not has_groups:
        config["num_key_value_heads"] = config["num_attention_heads"]
    return {"type": entry.type_of_config, **config}


def _make(folder: Path, config: dict[str, Any]) -> None:
    kind = config.pop("type")
    auto_class = AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else AutoModelForCausalLM
    make_random_model(AutoConfig.for_model(kind, **config), folder, auto_class=auto_class)


def _measure(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    options = LoadOptions(
        model_dir=folder,
        dtype="float32",
        device="cpu",
        block_size=16,
        num_slots=NUM_SLOTS,
        native_cache_dir=native_cache_folder(),
        num_threads=1,
        native_decoder=True,
        disabled_swaps=(),
        trust_remote_code=False,
        allow_pickle=False,
    )
    runner = load_model(options, lambda phase, progress: None)
    limits = KvMemoryOptions(max_step_tokens=MAX_STEP_TOKENS, num_slots=NUM_SLOTS, kv_cache_bytes=32 * 1024**2)
    plan = plan_kv_memory(runner, limits)
    measured = {
        "name": name,
        "folder": str(folder),
        "weight_bytes": plan.weight_bytes,
        "step_bytes": plan.step_bytes,
        "kv_bytes_per_token": runner.kv_bytes_per_block() // 16,
        "state_bytes": runner.facts.state_bytes,
    }
    print(json.dumps(measured), flush=True)


def _forked(run: Callable[..., None], *arguments: Any) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(*arguments)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"a measurement ended with {status}")


if __name__ == "__main__":
    for asked in sys.argv[2:]:
        name, size = asked.split(":")
        folder = Path(sys.argv[1]) / f"{name}-{size}"
        folder.mkdir(parents=True)
        _forked(_make, folder, config_of(name, size))
        _forked(_measure, folder, asked)
