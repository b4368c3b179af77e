"""The check at the start finds a model whose tokens see the tokens of other texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.probing.start_check import can_project, check_against_probe
from torch import nn

from tests.fakes.tiny_models import make_tiny_llama

TEXTS = (torch.tensor([11, 7, 202, 45, 98, 7, 13, 150]), torch.tensor([64, 3, 77, 12, 190]))


@pytest.fixture
def runner(tmp_path: Path) -> ModelRunner:
    folder = make_tiny_llama(tmp_path / "llama")
    return load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None)


def alone(runner: ModelRunner) -> tuple[torch.Tensor, ...]:
    """Return the logits of the last token of each text, by the model in eager mode."""
    model: Any = next(runner.modules())
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = tuple(model(text.unsqueeze(0), use_cache=False).logits[0, -1] for text in TEXTS)
    model.set_attn_implementation(implementation)
    return logits


def test_honest_model_passes(runner: ModelRunner) -> None:
    check_against_probe(runner, texts=TEXTS, expected_V_by_text=alone(runner))
    assert can_project(runner, texts=TEXTS)


def test_layer_that_looks_at_the_token_before_it_in_the_batch_is_noticed(runner: ModelRunner) -> None:
    expected = alone(runner)
    model: Any = next(runner.modules())

    def mix(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.1 * output.roll(1, dims=1)

    model.model.layers[0].mlp.register_forward_hook(mix)
    with pytest.raises(UnsupportedModelError, match="computed beside others in chunks"):
        check_against_probe(runner, texts=TEXTS, expected_V_by_text=expected)


def test_logits_that_are_not_finite_are_noticed(runner: ModelRunner) -> None:
    expected = alone(runner)
    model: Any = next(runner.modules())
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(UnsupportedModelError, match="differ from those computed alone by nan"):
        check_against_probe(runner, texts=TEXTS, expected_V_by_text=expected)


def test_head_that_needs_more_than_hidden_states_cannot_project(runner: ModelRunner) -> None:
    model: Any = next(runner.modules())
    calls = []

    def drift(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * len(calls)

    model.lm_head.register_forward_hook(drift)
    runner.allocate_kv(2)
    assert not can_project(runner, texts=TEXTS)
