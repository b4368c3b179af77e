"""A layer divided by inputs computes and exchanges in one native call, and adapters come before the exchange."""

# T rows, O outputs, I inputs of all ranks

import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layers.module_swaps import swap_modules
from textmill_shard.layers.parallel_layers import RowParallelLinear
from textmill_shard.layers.swapped_layers import PackedRowLinear
from textmill_shard.native.kernels import load_kernels
from textmill_shard.native.ranks import RankRoom
from textmill_shard.probing.call_observer import CallObserver
from torch import nn
from torch.nn import functional

from tests.fakes.native_cases import native_cache_folder, native_kernels
from tests.fakes.rooms import by_each, rooms

NUM_INPUTS, NUM_OUTPUTS = 32, 24


@pytest.mark.parametrize("has_adapter", [False, True])
def test_swapped_layer_gives_the_product_of_all_ranks(has_adapter: bool) -> None:
    native_kernels()  # or skip
    generator = torch.Generator().manual_seed(1)
    weight_OI = torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=generator)
    addition_OI = torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=generator)
    bias_O = torch.randn(NUM_OUTPUTS, generator=generator)
    x_1TI = torch.randn(1, 3, NUM_INPUTS, generator=generator)

    def work(room: RankRoom) -> torch.Tensor:
        kernels = load_kernels(native_cache_folder(), num_threads=1)
        assert kernels is not None
        half = NUM_INPUTS // 2
        part = slice(half * room.rank, half * (room.rank + 1))
        parallel = TensorParallel(room.rank, 2, room=room)
        model = nn.Sequential(
            RowParallelLinear(nn.Parameter(weight_OI[:, part], requires_grad=False), nn.Parameter(bias_O), parallel)
        )
        with torch.inference_mode(), CallObserver(model) as calls:
            model(x_1TI[..., part])
        assert swap_modules(model, calls, (), kernels) == {"packed_linear": 1}
        layer = model[0]
        assert type(layer) is PackedRowLinear
        if has_adapter:
            product = layer.local.forward
            layer.local.__dict__["forward"] = lambda x: product(x) + x @ addition_OI[:, part].T
        with torch.inference_mode():
            found: torch.Tensor = model(x_1TI[..., part])
        kernels.close()
        return found

    with rooms(2) as made:
        first, second = by_each(made, work)
        assert {room.num_exchanges for room in made} == {2}  # one of the observed pass
    expected = functional.linear(x_1TI, weight_OI + addition_OI if has_adapter else weight_OI, bias_O)
    assert torch.equal(first, second)
    assert (first - expected).abs().max() / expected.abs().max() <= 1e-6
