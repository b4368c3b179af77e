"""The products of adapters agree with plain torch in Triton's interpreter, for each row of the table of variants."""

# T rows, I inputs, O outputs, r rank, P places

import pytest
import torch
from textmill_shard.layers.low_rank_tables import LowRankTables
from textmill_shard.model.adapter import LowRank
from textmill_shard.triton_kernels.cases import LowRankCase
from textmill_shard.triton_kernels.interface import LowRankTable
from textmill_shard.triton_kernels.plain_layers import add_low_rank_plainly
from textmill_shard.triton_kernels.tiles import low_rank_tile
from textmill_shard.triton_kernels.variants import VARIANTS, Variant

from tests.fakes.kernel_cases import interpreted_kernels

CPU = torch.device("cpu")
ROWS = [variant for variant in VARIANTS if isinstance(variant.case, LowRankCase)]
# One sequence after the other, some of which have no adapter, and an adapter that leaves the layer alone.
PLACES_T = torch.tensor([2] * 3 + [0] * 2 + [1] * 30 + [5, 3, 2, 0, 4, 1, 5] + [4] * 5, dtype=torch.int32)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tables_of(num_inputs: int, num_outputs: int, ranks: dict[int, int]) -> LowRankTables:
    """Return the adapters of a layer, by place, beside those of another layer."""
    tables = LowRankTables(["other", "layer"], CPU)
    for place, rank in ranks.items():
        low = LowRank(
            a_rI=random(rank, num_inputs, seed=place) / num_inputs**0.5,
            b_Or=random(num_outputs, rank, seed=100 + place),
            scale=0.5 * place,
        )
        tables.put(place, {"layer": LowRankTables.to_device(low, CPU)})
    tables.put(3, {"other": LowRankTables.to_device(LowRank(random(2, 8, seed=1), random(8, 2, seed=1), 1.0), CPU)})
    return tables


def check(num_inputs: int, num_outputs: int, max_rank: int, *, is_decode: bool, places_T: torch.Tensor) -> None:
    ranks = {1: max_rank, 2: 1, 4: max(1, max_rank // 2 - 1), 5: min(7, max_rank)}
    table: LowRankTable = tables_of(num_inputs, num_outputs, ranks).of("layer")
    # The outputs are a part of a joined product, and the inputs lie in wider rows.
    joined_TO = random(len(places_T), num_outputs + 5, seed=3)
    x_TI = random(len(places_T), num_inputs + 3, seed=4)[:, :num_inputs]
    expected_TO, before_TO = joined_TO.clone(), joined_TO.clone()
    add_low_rank_plainly(expected_TO[:, 2:-3], x_TI, table, places_T)
    found_TO = joined_TO[:, 2:-3]
    interpreted_kernels().add_low_rank(found_TO, x_TI, table, places_T, max_rank=max_rank, is_decode=is_decode)
    torch.testing.assert_close(joined_TO, expected_TO, rtol=1e-5, atol=1e-4)
    is_base = (places_T == 0) | (places_T == 3)
    assert torch.equal(joined_TO[is_base], before_TO[is_base])
    assert not torch.equal(joined_TO[~is_base], before_TO[~is_base])


@pytest.mark.parametrize("variant", ROWS, ids=lambda variant: f"{variant.kernel}, {variant.name}")
def test_each_variant_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, LowRankCase)
    # Two tiles and a part of one take less time than the width of a model, which runs through the same lines.
    tile = case.tile
    num_inputs, num_outputs = (2 * tile.inputs + 24, 40) if variant.kernel == "shrink" else (40, 2 * tile.outputs + 24)
    places_T = PLACES_T[34:43] if case.is_decode else PLACES_T
    check(num_inputs, num_outputs, case.max_rank, is_decode=case.is_decode, places_T=places_T)


@pytest.mark.parametrize("is_decode", [True, False])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(7, 33), (65, 1), (64, 64)])
@pytest.mark.parametrize("max_rank", [1, 17, 70])
def test_sizes_that_fill_no_tile(num_inputs: int, num_outputs: int, max_rank: int, is_decode: bool) -> None:
    places_T = PLACES_T[34:43] if is_decode else PLACES_T
    check(num_inputs, num_outputs, max_rank, is_decode=is_decode, places_T=places_T)


def test_the_plain_product_is_the_formula() -> None:
    table = tables_of(6, 5, {1: 2, 2: 3}).of("layer")
    x_TI, out_TO = random(3, 6, seed=1), random(3, 5, seed=2)
    expected_TO = out_TO.clone()
    for row, place in ((0, 2), (2, 1)):
        low = table.low_ranks[place]
        expected_TO[row] += torch.einsum("i,ri,or->o", x_TI[row], low.a_rI, low.b_Or) * low.scale
    add_low_rank_plainly(out_TO, x_TI, table, torch.tensor([2, 0, 1], dtype=torch.int32))
    torch.testing.assert_close(out_TO, expected_TO)


def test_a_place_that_is_freed_and_taken_again_has_the_new_adapter() -> None:
    tables = tables_of(8, 8, {1: 2, 2: 2})
    tables.remove(1)
    assert int(tables.of("layer").ranks_P[1]) == 0
    low = LowRankTables.to_device(LowRank(random(3, 8, seed=7), random(8, 3, seed=8), 2.0), CPU)
    tables.put(1, {"layer": low})
    tables.put(40, {"layer": low})  # more places than before
    x_TI, places_T = random(3, 8, seed=1), torch.tensor([1, 40, 2], dtype=torch.int32)
    found_TO = torch.zeros(3, 8)
    interpreted_kernels().add_low_rank(found_TO, x_TI, tables.of("layer"), places_T, max_rank=3, is_decode=True)
    expected_TO = x_TI[:2] @ low.a_rI.T @ low.b_Or.T * 2.0
    torch.testing.assert_close(found_TO[:2], expected_TO, rtol=1e-5, atol=1e-5)
    assert bool(found_TO[2].any())


@pytest.mark.parametrize("place", [1, 7, 8, 100, 129])
def test_the_tables_of_each_layer_begin_at_a_multiple_of_16_bytes(place: int) -> None:
    """A GPU would compile other code for other addresses, while requests wait."""
    paths = [f"layer{number}" for number in range(5)]
    tables = LowRankTables(paths, CPU)
    low = LowRankTables.to_device(LowRank(random(2, 8, seed=1), random(8, 2, seed=2), 1.0), CPU)
    tables.put(place, {"layer3": low})
    for path in paths:
        table = tables.of(path)
        for numbers in (table.a_addresses_P, table.b_addresses_P, table.ranks_P, table.scales_P):
            assert numbers.data_ptr() % 16 == 0
    assert tables.of("layer3").ranks_P[place] == 2


@pytest.mark.parametrize("max_rank", [1, 16, 17, 64, 65, 512])
@pytest.mark.parametrize("is_decode", [True, False])
def test_a_tile_has_room_for_all_ranks(max_rank: int, is_decode: bool) -> None:
    tile = low_rank_tile(max_rank=max_rank, is_decode=is_decode)
    assert tile.width >= max_rank
    assert tile.width % tile.ranks == 0
    assert tile.ranks >= 16  # the smallest product of tensor cores
