"""Module swaps replace the layers that they should, keep the logits, and can be left out one by one."""

# T tokens, D width

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.layers.module_swaps import swap_modules
from textmill_shard.layers.swapped_layers import FusedLinear, NativeRmsNorm, PackedLinear
from textmill_shard.model.runner import ModelRunner
from textmill_shard.options import SWAPS
from textmill_shard.probing.call_observer import CallObserver
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.fakes.native_cases import load_with_kernels, native_kernels
from tests.fakes.paged_driver import PagedDriver
from tests.fakes.tiny_models import ARCHITECTURES, VOCAB_SIZE, make_tiny_model
from tests.zoo.drive import make_zoo_model
from tests.zoo.table import ZOO

TOLERANCE = 2e-5  # relative to the largest logit: fp32 sums in another order
SWAPPED_BY = {"qkv": FusedLinear, "gate_up": FusedLinear, "packed_linear": PackedLinear, "rms_norm": NativeRmsNorm}


def load(folder: Path, *, disabled: tuple[str, ...] = (), dtype: str = "float32") -> ModelRunner:
    return load_with_kernels(folder, dtype=dtype, native_decoder=False, disabled_swaps=disabled)


def logits_of(runner: ModelRunner) -> torch.Tensor:
    """Return the logits of all positions of two prompts that run in chunks beside each other."""
    driver = PagedDriver(runner, num_blocks=48)
    generator = torch.Generator().manual_seed(3)
    first, second = (
        driver.start(torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist(), max_new_tokens=2)
        for length in (40, 21)
    )
    driver.step([(first, 33), (second, 20)])
    driver.step([(second, 1), (first, 7)])
    return torch.stack([row for sequence in (first, second) for row in sequence.logits.values()])


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_logits_equal_those_without_swaps(tmp_path: Path, model_type: str) -> None:
    folder = make_tiny_model(tmp_path / model_type, model_type)
    swapped, plain = load(folder), load(folder, disabled=SWAPS)
    assert any(isinstance(module, PackedLinear) for module in swapped.modules())
    assert not any(isinstance(module, tuple(SWAPPED_BY.values())) for module in plain.modules())
    expected = logits_of(plain)
    assert (logits_of(swapped) - expected).abs().max() / expected.abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "layout", "swaps"),
    [
        ("gpt2", "flat", "packed_linear 9"),  # its linears hold their weights the other way round
        ("mamba", "state", "packed_linear 7, rms_norm 3"),
        ("jamba", "state", "qkv 6, gate_up 4, packed_linear 11, rms_norm 15"),
        ("falcon", "padded", "packed_linear 9"),  # its linears have a forward of their own
        ("gptj", "padded", "qkv 6, packed_linear 7"),
    ],
)
def test_every_layout_has_its_layers_swapped_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, layout: str, swaps: str
) -> None:
    """Swaps are found in these models. The tests of the zoo compare the logits of swapped models."""
    model = make_zoo_model(next(entry for entry in ZOO if entry.name == name), tmp_path)
    with caplog.at_level(logging.INFO, "textmill_shard"):
        runner = load(model.folder)
    assert runner.facts.layout == layout
    ours = [record for record in caplog.records if record.name.startswith("textmill")]
    assert [getattr(record, "module_swaps", record.message) for record in ours] == [swaps]


@pytest.mark.parametrize("name", SWAPS)
def test_each_swap_can_be_left_out(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tiny_model(tmp_path / "llama", "llama")
    with caplog.at_level(logging.INFO):
        runner = load(folder, disabled=(name,))
    logged = next(record for record in caplog.records if record.message == "model loaded")
    names = {entry.split()[0] for entry in logged.module_swaps.split(", ")}
    assert names == set(SWAPS) - {name}
    if name not in ("qkv", "gate_up"):
        assert not any(isinstance(module, SWAPPED_BY[name]) for module in runner.modules())


def test_originals_are_freed_and_tied_embeddings_stay(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "llama", "llama", tie_word_embeddings=True)
    swapped, plain = load(folder), load(folder, disabled=SWAPS)
    head = next(module for module in plain.modules() if isinstance(module, nn.Embedding)).weight.nbytes
    packed = [module.out_features for module in swapped.modules() if isinstance(module, PackedLinear)]
    assert VOCAB_SIZE in packed
    # Panels are filled up to 32 outputs, so a little more than the head; doubled weights would be far more.
    assert plain.facts.weight_bytes <= swapped.facts.weight_bytes < plain.facts.weight_bytes * 1.1 + head


def test_bfloat16_logits_stay_within_rounding(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "qwen3", "qwen3")
    exact = logits_of(load(folder, disabled=SWAPS))
    plain = (logits_of(load(folder, disabled=SWAPS, dtype="bfloat16")) - exact).abs().max()
    swapped = (logits_of(load(folder, dtype="bfloat16")) - exact).abs().max()
    assert swapped <= 1.5 * plain


class _Odd(nn.Module):
    """Linear layers of different inputs, a linear layer that is called twice, and a norm that subtracts the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 6)
        self.norm = nn.LayerNorm(8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        once = self.first(x) + self.second(x)
        return self.third(once) * self.third(x)


@pytest.mark.parametrize("num_rows", [1, 9])
def test_only_the_very_same_input_is_fused(num_rows: int) -> None:
    torch.manual_seed(0)
    model: Any = _Odd().eval()
    x = torch.randn(num_rows, 8)
    with torch.inference_mode(), CallObserver(model) as calls:
        expected = model(x)
    assert swap_modules(model, calls, (), native_kernels()) == {"gate_up": 2, "packed_linear": 1}
    assert isinstance(model.norm, nn.LayerNorm)
    with torch.inference_mode():
        assert torch.allclose(model(x), expected, atol=1e-5)
        # Called alone and with another input than its neighbour, a fused linear is still right.
        other = torch.randn(num_rows, 8)
        first = model.first(x)
        assert torch.allclose(model.second(other) + first, model.first(x) + model.second(other), atol=1e-6)


class _Doubled(nn.Linear):
    """A linear layer that computes something else than the product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class _Named(nn.Linear):
    """A linear layer with a forward of its own that computes the product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


class _Router(nn.Linear):
    """A linear layer that returns more than the product."""

    def forward(self, x: torch.Tensor) -> Any:
        scores = super().forward(x)
        return scores.argmax(-1), scores


class _Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = _Router(8, 4), _Named(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.router(x)[1] + self.out(x)


def test_linear_with_a_forward_of_its_own_is_packed_where_that_computes_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Doubled(8, 8), Conv1D(6, 8), nn.Linear(6, 8), _Routed()).eval()
    x = torch.randn(5, 8)
    with torch.inference_mode(), CallObserver(model) as calls:
        expected = model(x)
    assert swap_modules(model, calls, (), native_kernels()) == {"packed_linear": 3}
    assert isinstance(model[0], _Doubled)
    with torch.inference_mode():
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_padded_model_whose_layers_cannot_be_swapped_runs_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.gptj import modeling_gptj

    original = modeling_gptj.GPTJMLP.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return original(self, x) * (len(self.fc_out.weight) / 64)

    monkeypatch.setattr(modeling_gptj.GPTJMLP, "forward", forward)
    model = make_zoo_model(next(entry for entry in ZOO if entry.name == "gptj"), tmp_path)
    with caplog.at_level(logging.WARNING, "textmill_shard"):
        runner = load(model.folder)
    ours = [record.message for record in caplog.records if record.name.startswith("textmill")]
    assert ours == ["module swaps do not fit: loading again without them"]
    assert not any(isinstance(module, PackedLinear) for module in runner.modules())


def test_model_that_reads_its_weights_directly_runs_without_swaps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.olmo2 import modeling_olmo2

    original = modeling_olmo2.Olmo2MLP.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return original(self, x) + 0.0 * self.down_proj.weight.sum() + len(self.down_proj.weight) - 64

    folder = make_tiny_model(tmp_path / "olmo2", "olmo2")
    plain = logits_of(load(folder, disabled=SWAPS))
    monkeypatch.setattr(modeling_olmo2.Olmo2MLP, "forward", forward)
    with caplog.at_level(logging.WARNING):
        runner = load(folder)
    assert any("module swaps do not fit" in record.message for record in caplog.records)
    assert plain.shape == logits_of(runner).shape
