"""Loads models from their files as a shard does, and compares the tokens of their step loops with transformers' tokens.

One is a llama, and the other has experts. In float32 a kernel of the shard multiplies by the experts, and in bfloat16
torch's own on GPUs that have one. On both ways the decode steps become graphs.
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from textmill_shard.layers.device_experts import GroupedExperts
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.model.runner import ModelRunner
from transformers import MixtralConfig, MixtralForCausalLM

from bench.gpu.loop import Request
from bench.gpu.loop_checks import DRY_SMALL, SMALL, loop_of, requests_of, tokens_of_transformers
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, Sizes, fill_pool, make_model

NUM_BLOCKS = 64
NUM_EXPERTS, EXPERTS_OF_TOKEN = 8, 2
LLAMA, EXPERTS = "llama", "experts"
GRAPHS = "decode steps become graphs"


def check_files(setting: Setting) -> Iterator[Row]:
    """Yield whether the loaded models run by the kernels, and whether their greedy tokens are those of transformers."""
    if importlib.util.find_spec("accelerate") is None:
        yield Row("a model of files", {"not run": "because the loader needs accelerate"})
        return
    sizes = DRY_SMALL if setting.is_dry else SMALL
    request = requests_of(setting, sizes)[0]
    runner = _load(setting, make_model(setting, sizes), "float32")
    # The shard falls back to plain torch with a warning where the kernels cannot be had.
    has_kernels = runner.device_scans is not None
    yield Row(f"{LLAMA}: loaded by the kernels", {"layout": runner.facts.layout}, setting.is_dry or has_kernels)
    yield _tokens_row(setting, LLAMA, runner, make_model(setting, sizes), request)
    model = _make_experts(setting, sizes)
    runner = _load(setting, model, "float32")
    num_layers = sum(isinstance(module.forward, GroupedExperts) for module in runner.modules())
    yield Row(
        f"{EXPERTS}: multiplied by the kernel",
        {"layers": num_layers},
        setting.is_dry or num_layers == sizes.shape.layers,
    )
    yield _tokens_row(setting, EXPERTS, runner, model, request)
    if setting.is_dry:
        return
    for dtype in ("float32", "bfloat16"):
        loaded = runner if dtype == "float32" else _load(setting, model, dtype)
        fill_pool(loaded, NUM_BLOCKS)
        is_recorded = loaded.record_graphs(setting.graph_recorder(), (1, 2), lambda share: None, num_slots=2)
        yield Row(f"{EXPERTS} in {dtype}: {GRAPHS}", {}, is_recorded)


def _make_experts(setting: Setting, sizes: Sizes) -> Any:
    """Return a Mixtral of transformers on the device, in float32, with weights from a seed."""
    shape = sizes.shape
    config = MixtralConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=EXPERTS_OF_TOKEN,
        max_position_embeddings=131_072,
    )
    torch.manual_seed(1)
    with setting.device:
        return MixtralForCausalLM(config).eval()


def _load(setting: Setting, model: Any, dtype: str) -> ModelRunner:
    from textmill_shard.loader.model_loader import load_model  # which imports accelerate

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        options = LoadOptions(
            model_dir=Path(folder), dtype=dtype, device=str(setting.device), block_size=BLOCK_SIZE, num_slots=2
        )
        return load_model(options, lambda phase, share: None)


def _tokens_row(setting: Setting, name: str, runner: ModelRunner, model: Any, request: Request) -> Row:
    fill_pool(runner, NUM_BLOCKS)
    with loop_of(runner, NUM_BLOCKS, len(request.prompt), 1, has_overlap=not setting.is_dry) as loop:
        [found] = loop.run([request]).tokens
    expected = tokens_of_transformers(model, request)
    num_other = sum(mine != theirs for mine, theirs in zip(expected, found, strict=True))
    numbers: dict[str, float | str] = {"tokens": len(found), "other tokens": num_other}
    return Row(f"{name}: greedy tokens as by transformers", numbers, num_other == 0)
