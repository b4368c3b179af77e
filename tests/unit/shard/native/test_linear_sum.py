"""A product of which each rank has a part is added up over the ranks by the call that computes the parts."""

# T rows, O outputs, I inputs of all ranks

from collections.abc import Sequence

import pytest
import torch
from textmill_shard.native.kernels import Kernels, load_kernels, pad_bias
from textmill_shard.native.ranks import RankLost, RankRoom
from torch.nn import functional

from tests.fakes.native_cases import native_cache_folder, native_kernels
from tests.fakes.rooms import by_each, rooms

NUM_RANKS, NUM_INPUTS = 2, 64
# Sums in another order, and in bfloat16 two parts and a sum that are each rounded to 8 bits.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2}


def kernels_of_each_rank(num_threads: int) -> Sequence[Kernels]:
    native_kernels()  # or skip
    made = [load_kernels(native_cache_folder(), num_threads=num_threads) for _ in range(NUM_RANKS)]
    return [kernels for kernels in made if kernels is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_sum_is_the_product_of_all_inputs_with_equal_bits_on_every_rank(num_threads: int, dtype: torch.dtype) -> None:
    """Among the sizes are one row, outputs that fill no vector, and rows that do not fit into a bank of 4096 bytes."""
    generator = torch.Generator().manual_seed(5)
    kernels = kernels_of_each_rank(num_threads)
    cases = []
    for num_rows, num_outputs in ((1, 32), (1, 7), (8, 96), (3, 100), (40, 70)):
        x_TI = torch.randn(num_rows, NUM_INPUTS, generator=generator).to(dtype)
        weight_OI = torch.randn(num_outputs, NUM_INPUTS, generator=generator).to(dtype)
        cases.append((x_TI, weight_OI, torch.randn(num_outputs, generator=generator)))

    def work(room: RankRoom) -> list[torch.Tensor]:
        mine, width = kernels[room.rank], NUM_INPUTS // NUM_RANKS
        part = slice(width * room.rank, width * (room.rank + 1))
        return [
            mine.linear_sum(x_TI[:, part], mine.pack(weight_OI[:, part]), None if room.rank else pad_bias(bias_O), room)
            for x_TI, weight_OI, bias_O in cases
        ]

    with rooms(NUM_RANKS) as made:
        first, second = by_each(made, work)
        assert {room.num_exchanges for room in made} == {len(cases)}
    for one in kernels:
        one.close()
    for (x_TI, weight_OI, bias_O), found_TO, other_TO in zip(cases, first, second, strict=True):
        expected_TO = functional.linear(x_TI.double(), weight_OI.double(), bias_O.double())
        assert found_TO.dtype == dtype
        assert torch.equal(found_TO, other_TO)
        assert (found_TO - expected_TO).abs().max() / expected_TO.abs().max() <= TOLERANCE[dtype]


def test_sum_with_a_rank_that_has_ended_raises() -> None:
    kernels = native_kernels()
    weight = kernels.pack(torch.ones(8, 4))
    with rooms(NUM_RANKS) as (first, second):
        second.close()
        with pytest.raises(RankLost, match="rank 1 of 2 has ended"):
            kernels.linear_sum(torch.ones(1, 4), weight, None, first)
