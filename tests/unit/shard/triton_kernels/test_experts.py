"""The products of experts agree with plain torch in Triton's interpreter, for each row of the table of variants."""

# N rows, K experts of a row, P pairs, E experts, I inputs, O outputs

from dataclasses import replace

import pytest
import torch
from textmill_shard.layers.device_experts import order_pairs
from textmill_shard.triton_kernels.cases import ExpertCase
from textmill_shard.triton_kernels.interface import ExpertOrder
from textmill_shard.triton_kernels.plain_layers import expert_product_plainly
from textmill_shard.triton_kernels.tiles import ExpertTile, expert_tile, num_expert_tiles
from textmill_shard.triton_kernels.variants import VARIANTS, Variant

from tests.fakes.kernel_cases import interpreted_kernels

ROWS = [variant for variant in VARIANTS if isinstance(variant.case, ExpertCase)]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(case: ExpertCase) -> torch.Tensor:
    """Return experts of rows, `[N, K]`: most go to the second expert and to the last, and many experts get none."""
    drawn = torch.randint(case.num_experts, (case.num_pairs,), generator=torch.Generator().manual_seed(0)) // 3 * 3
    drawn[::2], drawn[::5] = 1, case.num_experts - 1
    return drawn.view(-1, case.pairs_of_row)


def check(case: ExpertCase, experts_NK: torch.Tensor, tile: ExpertTile | None = None) -> None:
    sizes = (case.num_inputs, case.num_outputs)
    weights = random(case.num_experts, *(sizes if case.has_inputs_first else sizes[::-1]), seed=1)
    weights /= case.num_inputs**0.5
    biases_EO = random(case.num_experts, case.num_outputs, seed=2) if case.has_bias else None
    # The inputs lie in wider rows.
    x_NI = random(len(experts_NK), case.num_inputs + 3, seed=3)[:, : case.num_inputs]
    order = order_pairs(experts_NK, torch.arange(case.num_experts), itemsize=4)
    if tile is not None:
        order = replace(order, tile=tile)
    given = (x_NI, weights, biases_EO, order)
    found_PO = interpreted_kernels().expert_product(*given, has_inputs_first=case.has_inputs_first)
    expected_PO = expert_product_plainly(*given, has_inputs_first=case.has_inputs_first)
    torch.testing.assert_close(found_PO, expected_PO, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ROWS, ids=lambda variant: variant.name)
def test_each_variant_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, ExpertCase)
    # Two tiles and a part of one take less time than the widths of a model, which run through the same lines.
    tile = case.tile
    small = replace(
        case,
        num_experts=min(case.num_experts, 7),
        num_inputs=2 * tile.inputs + 11,
        num_outputs=tile.outputs + 6,
        num_pairs=case.pairs_of_row * (2 + 3 * tile.rows // case.pairs_of_row),
    )
    check(small, spread(small), tile)


@pytest.mark.parametrize("has_inputs_first", [True, False])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(7, 33), (65, 1), (64, 64)])
@pytest.mark.parametrize("num_pairs", [1, 3, 200])
def test_sizes_that_fill_no_tile(num_inputs: int, num_outputs: int, num_pairs: int, has_inputs_first: bool) -> None:
    case = ExpertCase("fp32", 5, num_inputs, num_outputs, num_pairs, has_inputs_first=has_inputs_first, has_bias=True)
    check(case, spread(case))


@pytest.mark.parametrize("expert", [0, 3, 4])
def test_all_rows_may_go_to_one_expert(expert: int) -> None:
    case = ExpertCase("fp32", 5, 20, 24, 75)
    check(case, torch.full((75, 1), expert))


def test_one_expert_has_all_rows() -> None:
    case = ExpertCase("fp32", 1, 20, 24, 40)
    check(case, torch.zeros(40, 1, dtype=torch.int64))


def test_the_plain_product_is_the_formula() -> None:
    x_NI, weights, biases_EO = random(3, 6, seed=1), random(4, 5, 6, seed=2), random(4, 5, seed=3)
    experts_NK = torch.tensor([[2, 0], [0, 3], [2, 3]])
    order = order_pairs(experts_NK, torch.arange(4), itemsize=4)
    assert order.ends_E.tolist() == [2, 2, 4, 6]
    expected = [
        torch.einsum("i,oi->o", x_NI[row], weights[expert]) + biases_EO[expert]
        for row in range(3)
        for expert in experts_NK[row].tolist()
    ]
    found_PO = expert_product_plainly(x_NI, weights, biases_EO, order, has_inputs_first=False)
    torch.testing.assert_close(found_PO, torch.stack(expected))
    turned = weights.transpose(1, 2).contiguous()
    torch.testing.assert_close(expert_product_plainly(x_NI, turned, biases_EO, order, has_inputs_first=True), found_PO)


def test_weights_of_another_form_than_the_rows_are_refused() -> None:
    tile = expert_tile(itemsize=4, num_pairs=3, num_experts=2)
    order = ExpertOrder(tile, torch.arange(3), torch.tensor([3, 3], dtype=torch.int32))
    with pytest.raises(AssertionError, match="float16"):
        interpreted_kernels().expert_product(
            random(3, 6, seed=1), random(2, 5, 6, seed=2).half(), None, order, has_inputs_first=False
        )


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_are_enough_for_every_way_to_spread_the_rows(itemsize: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for num_pairs, num_experts in ((1, 8), (8, 128), (64, 8), (500, 3), (2048, 8), (4096, 128)):
        rows = expert_tile(itemsize=itemsize, num_pairs=num_pairs, num_experts=num_experts).rows
        room = num_expert_tiles(rows=rows, num_pairs=num_pairs, num_experts=num_experts)
        one_each = torch.arange(num_pairs).clamp(max=num_experts - 1)
        worst = torch.cat([torch.arange(num_experts), torch.zeros(num_pairs, dtype=torch.int64)])[:num_pairs]
        drawn = torch.randint(num_experts, (num_pairs,), generator=generator)
        for experts_P in (one_each, worst, drawn, torch.zeros(num_pairs, dtype=torch.int64)):
            counts_E = torch.bincount(experts_P, minlength=num_experts)
            assert int(((counts_E + rows - 1) // rows).sum()) <= room
