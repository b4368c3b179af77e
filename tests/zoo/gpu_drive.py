"""Loads models of the zoo onto a GPU without values (`tests/fakes/fake_gpu.py`)."""

from pathlib import Path

import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.adapter import AdapterWeights, LowRank
from textmill_shard.model.runner import ModelRunner

from tests.fakes.fake_gpu import FakeGpu, ShapeKernels
from tests.fakes.plain_kernels import PlainKernels, Switch, load_by
from tests.zoo.drive import BLOCK_SIZE, NUM_SLOTS


def load_on(
    gpu: FakeGpu,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dtype: str = "bfloat16",
    kv_type: str = "auto",
    num_adapters: int = 0,
    shapes: type[ShapeKernels] = ShapeKernels,
    disabled_swaps: tuple[str, ...] = (),
) -> ModelRunner:
    """Load the model on the CPU, and move it to the GPU without values, in bfloat16.

    The adapters have the places from 1 on, and change every layer that can be changed.
    """
    kernels = Switch(PlainKernels(gpu.capability))
    load_by(monkeypatch, kernels)
    # transformers asks torch for the capability of the GPU, to choose how it multiplies by the weights of experts.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: gpu.capability)
    options = LoadOptions(
        model_dir=folder,
        dtype=dtype,
        block_size=BLOCK_SIZE,
        num_slots=NUM_SLOTS,
        kv_cache_dtype=kv_type,
        disabled_swaps=disabled_swaps,
    )
    runner = load_model(options, lambda phase, share: None)
    for module in runner.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.bfloat16()
    runner.dtype = torch.bfloat16
    runner.allocate_kv(1)
    for place in range(1, num_adapters + 1):
        runner.adapters.put(place, runner.adapters.prepare(adapter_of(runner, rank=place)))
    kernels.chosen = shapes(gpu)
    gpu.move(runner)
    return runner


def adapter_of(runner: ModelRunner, *, rank: int) -> AdapterWeights:
    """Return an adapter of all layers that can be changed."""
    modules = {
        path: LowRank(
            torch.zeros(rank, part.in_features, dtype=torch.bfloat16),
            torch.zeros(part.out_features, rank, dtype=torch.bfloat16),
            scale=1.0,
        )
        for path, part in runner.targets.linears.items()
    }
    return AdapterWeights(digest=bytes([rank]) * 16, modules=modules, max_rank=rank)


class TwinRoom:
    """Where a rank meets itself."""

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([tensor, tensor])
