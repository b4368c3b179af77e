"""Layers of a GPU take the places of layers that compute the same, and of no others, and each swap can be left out."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.layers.device_layers import DeviceRmsNorm, HandedOn, JoinedLinear, JoinedLinears
from textmill_shard.layers.device_swaps import swap_for_device
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.options import DEVICE_SWAPS
from textmill_shard.probing.call_observer import CallObserver
from torch import nn
from torch.nn import functional

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.tiny_models import make_tiny_llama

WIDTH = 8
FOUND = {"qkv": 6, "gate_up": 4, "rms_norm": 5, "rotary_turn": 2, "residual": 2}
IN_OTHER_MODELS = {"experts"}  # see test_device_experts.py


class CountingKernels(PlainKernels):
    """Counts the calls of the small kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.num_norms = self.num_sums = self.num_gates = 0

    def rms_norm(self, *given: Any) -> torch.Tensor:
        self.num_norms += 1
        return super().rms_norm(*given)

    def add_rms_norm(self, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_sums += 1
        return super().add_rms_norm(*given)

    def gate_up(self, *given: Any) -> torch.Tensor:
        self.num_gates += 1
        return super().gate_up(*given)


@pytest.mark.parametrize("name", FOUND)
def test_each_swap_can_be_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(DEVICE_SWAPS) <= set(FOUND) | IN_OTHER_MODELS
    load_by(monkeypatch, PlainKernels())
    options = LoadOptions(model_dir=make_tiny_llama(tmp_path), dtype="float32", disabled_swaps=(name,))
    with caplog.at_level(logging.INFO, "textmill_shard"):
        load_model(options, lambda phase, share: None)
    [swaps] = [record.module_swaps for record in caplog.records if hasattr(record, "module_swaps")]
    left_out = {name, "residual"} if name == "rms_norm" else {name}  # without norms there is nothing to fuse
    assert swaps == ", ".join(f"{kind} {count}" for kind, count in FOUND.items() if kind not in left_out)


class Mlp(nn.Module):
    """An MLP with a gate, whose parts multiply in a way that the test says."""

    def __init__(self, combine: Any, *, has_bias: bool = False) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(WIDTH, 12, bias=has_bias) for _ in range(2))
        self.down = nn.Linear(12, WIDTH)
        self._combine = combine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self._combine(self.a(x), self.b(x)))
        return out


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (WIDTH,), self.weight, self.eps)


class Attention(nn.Module):
    """Attends in no way that the swaps look at."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.out(hidden_states).roll(1, dims=1), None


class Layer(nn.Module):
    """A decoder layer. `scale` multiplies what attention adds."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.norm_1, self.attention, self.norm_2 = Norm(), Attention(), Norm()
        self.mlp = Mlp(lambda a, b: functional.silu(a) * b)
        self._scale = scale

    def forward(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        attended, _ = self.attention(hidden_states=self.norm_1(hidden_states), **named)
        hidden_states = hidden_states + attended * self._scale
        return hidden_states + self.mlp(self.norm_2(hidden_states))


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def set_attn_implementation(self, name: str) -> None: ...

    def forward(self, x: torch.Tensor | None = None, input_ids: Any = None, use_cache: bool = False) -> torch.Tensor:
        if x is None:
            x = torch.zeros(1, input_ids.shape[1], WIDTH)
        for layer in self.layers:
            x = layer(x)
        return x


def swap(model: Model) -> tuple[dict[str, int], CountingKernels, torch.Tensor, torch.Tensor]:
    """Swap what can be swapped, and return the counts and the model's results before and after."""
    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    with CallObserver(model) as calls:
        before = model(x)
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    kernels = CountingKernels()
    text_L = torch.zeros(3, dtype=torch.int64)
    swaps = swap_for_device(model, calls, attention, text_L, kernels, disabled=())
    kernels.num_norms = kernels.num_sums = kernels.num_gates = 0
    return swaps.counts, kernels, before, model(x)


def test_layers_of_the_known_form_run_with_one_launch_for_each_sum_and_norm() -> None:
    torch.manual_seed(0)
    counts, kernels, before, after = swap(Model(Layer(), Layer(), Layer()))
    assert counts == {"gate_up": 6, "rms_norm": 6, "residual": 3}
    torch.testing.assert_close(after, before)
    # The first norm has nothing before it, and the last sum has no norm behind it.
    assert (kernels.num_norms, kernels.num_sums, kernels.num_gates) == (1, 5, 3)


def test_layers_of_another_form_keep_their_code() -> None:
    torch.manual_seed(0)
    counts, kernels, before, after = swap(Model(Layer(), Layer(scale=0.5), Layer()))
    assert counts["residual"] == 2
    torch.testing.assert_close(after, before)
    assert (kernels.num_norms, kernels.num_sums) == (1 + 2 + 1, 1 + 1)  # a layer between hands nothing on


@pytest.mark.parametrize(
    ("combine", "is_found"),
    [
        (lambda a, b: functional.silu(a) * b, True),
        (lambda a, b: a * functional.silu(b), True),  # the gate comes second
        (lambda a, b: functional.gelu(a) * b, True),
        (lambda a, b: functional.gelu(a, approximate="tanh") * b, True),
        (lambda a, b: functional.relu(a) * b, False),
        (lambda a, b: functional.silu(a) * (b + 1.0), False),  # as of gpt-oss
        (lambda a, b: functional.silu(a).clamp(max=0.1) * b, False),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_gates_are_found_by_what_they_compute(combine: Any, is_found: bool, has_bias: bool) -> None:
    torch.manual_seed(0)
    counts, kernels, before, after = swap(Model(Mlp(combine, has_bias=has_bias)))
    assert counts.get("gate_up", 0) == 2 * is_found
    assert kernels.num_gates == is_found
    torch.testing.assert_close(after, before)


def test_a_norm_of_another_tensor_is_computed() -> None:
    norm = DeviceRmsNorm(torch.ones(WIDTH), 1e-5, PlainKernels(), dtype=torch.float32)
    other = DeviceRmsNorm(torch.full((WIDTH,), 2.0), 1e-5, PlainKernels(), dtype=torch.float32)
    x, wrong = torch.randn(2, WIDTH), torch.full((2, WIDTH), torch.nan)
    hands_on = HandedOn()
    for tensor, wanted in ((x.clone(), norm), (x, other)):
        hands_on.put(x, norm, wrong)
        assert torch.equal(hands_on.take(tensor, wanted), wanted(tensor))
    hands_on.put(x, norm, wrong)
    assert hands_on.take(x, norm) is wrong
    assert torch.equal(hands_on.take(x, norm), norm(x))  # a result is handed out once


def test_joined_products_may_be_called_in_any_order() -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5, bias=False), nn.Linear(WIDTH, 2)]
    x, y = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    expected = [[linear(tensor) for linear in linears] for tensor in (x, y)]
    joined = JoinedLinears(linears)
    layers = [JoinedLinear(joined, index) for index in range(3)]
    for place, index in ((0, 2), (1, 0), (0, 1), (0, 0), (0, 0), (1, 2)):
        found = layers[index]((x, y)[place])
        torch.testing.assert_close(found, expected[place][index])
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(WIDTH, 3), (WIDTH, 5), (WIDTH, 2)]


@pytest.mark.parametrize("name", ["a", "b", "down"])
def test_an_adapter_of_a_part_of_an_mlp_reaches_its_result(name: str) -> None:
    """Adapters replace the forward of a layer that they find by its path (`layers/adapted_modules.py`)."""
    torch.manual_seed(0)
    model = Model(Mlp(lambda a, b: functional.silu(a) * b))
    plain = copy.deepcopy(model)
    counts, _, _, _ = swap(model)
    assert counts == {"gate_up": 2}
    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    results = []
    for either in (plain, model):
        layer = either.get_submodule(f"layers.0.{name}")
        forward = layer.forward
        layer.__dict__["forward"] = lambda x, forward=forward: forward(x) + 0.25
        results.append(either(x))
    torch.testing.assert_close(results[1], results[0])
