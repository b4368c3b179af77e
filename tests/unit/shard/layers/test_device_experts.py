"""Experts get a forward without a read on the host where torch would read, and where the results are the same."""

# N rows, K experts of a row, E experts, H hidden width, I inner width

import copy
from typing import Any

import pytest
import torch
from textmill_shard.layers.device_experts import GroupedExperts, find_experts, torch_waits
from textmill_shard.layers.experts import ExpertWeights
from textmill_shard.layers.parallel_layers import add_up_outputs
from torch import nn
from transformers import GptOssConfig, MixtralConfig, NemotronHConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from tests.fakes.kernel_cases import interpreted_kernels
from tests.fakes.plain_kernels import PlainKernels

WIDTH, INNER, NUM_EXPERTS = 24, 40, 6
ROWS = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(3))
EXPERTS_NK = torch.tensor([[0, 5], [5, 2], [2, 0], [2, 5], [5, 4], [2, 4], [2, 5]])  # none goes to 1 and 3
WEIGHTS_NK = torch.rand(7, 2, generator=torch.Generator().manual_seed(4))


def mixtral(activation: str = "silu") -> MixtralConfig:
    return MixtralConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=NUM_EXPERTS, hidden_act=activation
    )


def experts(kind: type[nn.Module], config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return random experts."""
    config._experts_implementation = "eager"
    module: Any = kind(config)
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.to(dtype)


MODULES = {
    "gate of silu": lambda: experts(MixtralExperts, mixtral()),
    "gate of gelu": lambda: experts(MixtralExperts, mixtral("gelu")),
    "gate of relu": lambda: experts(MixtralExperts, mixtral("relu")),
    "inputs first, biases, a gate of its own": lambda: experts(
        GptOssExperts, GptOssConfig(hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=NUM_EXPERTS)
    ),
    "no gate": lambda: experts(
        NemotronHExperts, NemotronHConfig(hidden_size=WIDTH, moe_intermediate_size=INNER, n_routed_experts=NUM_EXPERTS)
    ),
}


@pytest.mark.parametrize("kernels", [PlainKernels(), interpreted_kernels()], ids=["plain torch", "interpreter"])
@pytest.mark.parametrize("name", MODULES)
def test_results_are_those_of_the_loop_over_the_experts(name: str, kernels: Any) -> None:
    module = MODULES[name]()
    with torch.inference_mode():
        expected = module(ROWS, EXPERTS_NK, WEIGHTS_NK)
        found = find_experts(module, kernels)
        assert found is not None
        torch.testing.assert_close(found(ROWS, EXPERTS_NK, WEIGHTS_NK), expected, rtol=1e-5, atol=1e-6)


def test_the_gate_is_one_kernel_where_its_activation_is_known() -> None:
    calls: list[str] = []

    class Noting(PlainKernels):
        def gate_up(self, *given: Any) -> torch.Tensor:
            calls.append(given[2])
            return super().gate_up(*given)

    for name, activations in (("gate of silu", {"silu"}), ("gate of gelu", {"gelu"}), ("gate of relu", set())):
        found = find_experts(MODULES[name](), Noting())
        assert found is not None
        calls.clear()
        found(ROWS, EXPERTS_NK, WEIGHTS_NK)
        assert set(calls) == activations


def part_of_rank(module: Any, rank: int) -> Any:
    """Return the half of each expert that one of two ranks has. The biases of the outputs are those of the first."""
    half = slice(rank * INNER // 2, (rank + 1) * INNER // 2)
    part = copy.deepcopy(module)
    if module.is_transposed:
        pairs = torch.arange(2 * INNER).view(INNER, 2)[half].flatten()  # gate and up stand side by side
        part.gate_up_proj = nn.Parameter(module.gate_up_proj[:, :, pairs].contiguous())
        part.gate_up_proj_bias = nn.Parameter(module.gate_up_proj_bias[:, pairs].contiguous())
        part.down_proj = nn.Parameter(module.down_proj[:, half].contiguous())
        part.down_proj_bias = nn.Parameter(module.down_proj_bias * (rank == 0))
    else:
        rows = torch.arange(2 * INNER).view(2, INNER)[:, half].flatten()  # all gates, and then all up parts
        part.gate_up_proj = nn.Parameter(module.gate_up_proj[:, rows].contiguous())
        part.down_proj = nn.Parameter(module.down_proj[:, :, half].contiguous())
    return part


class OtherRank:
    """Stands in for the other of two ranks, whose outputs are known."""

    def __init__(self, output: torch.Tensor) -> None:
        self._output = output

    def all_reduce(self, output: torch.Tensor) -> torch.Tensor:
        return output + self._output


@pytest.mark.parametrize("name", ["gate of silu", "inputs first, biases, a gate of its own"])
def test_the_parts_of_two_ranks_add_up_to_the_experts(name: str) -> None:
    whole = MODULES[name]()
    with torch.inference_mode():
        expected = whole(ROWS, EXPERTS_NK, WEIGHTS_NK)
        first, second = (part_of_rank(whole, rank) for rank in range(2))
        for part in (first, second):
            part.forward = find_experts(part, interpreted_kernels())
            assert part.forward is not None
        add_up_outputs(first, OtherRank(second(ROWS, EXPERTS_NK, WEIGHTS_NK)))  # type: ignore[arg-type]
        found = first(ROWS, EXPERTS_NK, WEIGHTS_NK)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_experts_that_compute_something_else_stay() -> None:
    class Doubled(MixtralExperts):
        def forward(self, *given: Any) -> torch.Tensor:
            return 2.0 * super().forward(*given)

    assert find_experts(experts(Doubled, mixtral()), PlainKernels()) is None
    assert find_experts(nn.Linear(3, 3), PlainKernels()) is None
    assert isinstance(find_experts(experts(MixtralExperts, mixtral()), PlainKernels()), GroupedExperts)


def test_experts_stay_where_torch_lets_the_host_wait_for_nothing() -> None:
    module = experts(MixtralExperts, mixtral(), torch.bfloat16)
    assert find_experts(module, PlainKernels((9, 0))) is None
    assert find_experts(module, PlainKernels((8, 9))) is not None


@pytest.mark.parametrize(
    ("capability", "dtype", "widths", "num_experts", "waits"),
    [
        ((9, 0), torch.bfloat16, (2880, 2880), 32, False),
        ((10, 0), torch.bfloat16, (2048, 768), 128, False),
        ((10, 3), torch.bfloat16, (2048, 768), 128, False),
        ((8, 0), torch.bfloat16, (2048, 768), 128, True),  # A100
        ((8, 9), torch.bfloat16, (2048, 768), 128, True),  # L4
        ((12, 0), torch.bfloat16, (2048, 768), 128, True),  # RTX 50
        ((9, 0), torch.float16, (2048, 768), 128, True),
        ((9, 0), torch.float32, (2048, 768), 128, True),
        ((9, 0), torch.bfloat16, (2880, 180), 32, True),  # rows of 360 bytes, as a rank of 16 has
        ((9, 0), torch.bfloat16, (2048, 768), 1024, True),
        ((9, 0), torch.bfloat16, (2048, 768), 1, True),
    ],
)
@pytest.mark.parametrize("has_inputs_first", [True, False])
def test_where_torch_waits(
    capability: tuple[int, int],
    dtype: torch.dtype,
    widths: tuple[int, int],
    num_experts: int,
    waits: bool,
    has_inputs_first: bool,
) -> None:
    hidden, inner = widths
    sizes = ((hidden, 2 * inner), (inner, hidden)) if has_inputs_first else ((2 * inner, hidden), (hidden, inner))
    up, down = (torch.empty(num_experts, *size, dtype=dtype, device="meta") for size in sizes)
    assert torch_waits(capability, ExpertWeights(up, down, has_inputs_first)) == waits
