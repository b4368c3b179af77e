"""Steps of all sizes run at the start, so that no kernel of attention is compiled while requests run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.step_trial import compile_steps
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.triton_kernels import launching
from textmill_shard.triton_kernels.kernels import TritonKernels

from tests.fakes.plain_kernels import H100_MULTIPROCESSORS, PlainKernels, load_by
from tests.fakes.tiny_models import make_tiny_llama

MAX_STEP_TOKENS = 512
NUM_SLOTS = 24
BLOCK_SIZE = 16


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Return the kernels that were launched, with their constants. Nothing is computed."""
    found: set[Any] = set()

    def note(kernel: Any, grid: tuple[int, ...], *arguments: Any, constants: dict[str, Any], **how: Any) -> None:
        types = tuple(value.dtype if torch.is_tensor(value) else value is None for value in arguments)
        found.add((kernel.fn.__name__, types, tuple(constants.items()), tuple(how.items())))

    monkeypatch.setattr(launching, "launch", note)
    return found


@dataclass
class Exchangeable:
    """Kernels that are others from some time on."""

    now: Any

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **how: getattr(self.now, name)(*args, **how)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variants: set[Any]) -> ModelRunner:
    kernels: Any = Exchangeable(PlainKernels())
    load_by(monkeypatch, kernels)
    folder = make_tiny_llama(tmp_path, max_position_embeddings=4096)
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE)
    loaded = load_model(options, lambda phase, share: None)
    kernels.now = TritonKernels(num_multiprocessors=H100_MULTIPROCESSORS, capability=(9, 0))  # behind the check at load
    loaded.allocate_kv(0)
    return loaded


def run(runner: ModelRunner, lengths: list[int]) -> None:
    rows = [
        SyntheticRow(ids_n=torch.zeros(length, dtype=torch.int64), blocks=[0] * -(-length // BLOCK_SIZE))
        for length in lengths
    ]
    runner.forward(synthetic_batch(rows, block_size=BLOCK_SIZE))


def test_no_step_needs_a_kernel_that_the_start_has_not_compiled(runner: ModelRunner, variants: set[Any]) -> None:
    variants.clear()
    compile_steps(runner, max_step_tokens=MAX_STEP_TOKENS, num_slots=NUM_SLOTS)
    compiled = set(variants)
    rows = {dict(constants)["ROWS"] for name, _, constants, _ in compiled if name == "merge_splits"}
    assert len(rows) == 2, "the tiles of decodes and of chunks, whatever the number of parts"
    for num_decodes in (0, 1, 2, 3, 7, 12, 23):
        for chunk in (0, 1, 2, 3, 5, 9, 17, 31, 33, 70, 100, 130, 200, 270, 400, 480):
            if num_decodes + chunk:
                variants.clear()
                run(runner, [*[1] * num_decodes, *([chunk] if chunk else [])])
                assert variants <= compiled, (num_decodes, chunk, variants - compiled)
