"""Norms, gates and scans agree with plain torch in Triton's interpreter, for each row of the table of variants.

The numbers are fp32, because the interpreter is exact for no others, and the widths are those of the rows.
"""

from typing import Any

import pytest
import torch
from textmill_shard.model.score_changes import (
    BiasChange,
    CountChange,
    IdLists,
    MaskChange,
    RepetitionChange,
    ScoreChanges,
    Temperatures,
)
from textmill_shard.sampling import noise
from textmill_shard.sampling.row_scan import DeviceRowScanner, TorchRowScanner
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.triton_kernels.cases import CHANGES, SCORE_CHANGES, Change, GateCase, NormCase, ScanCase
from textmill_shard.triton_kernels.constants import LIST_ENTRIES, SCAN_IDS
from textmill_shard.triton_kernels.plain_layers import add_rms_norm_plainly, gate_up_plainly, rms_norm_plainly
from textmill_shard.triton_kernels.variants import VARIANTS, Variant
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.fakes.kernel_cases import interpreted_kernels
from tests.fakes.sampling_hand import Seat, sample

# A GPU computes with infinities without a word; numpy, by which the interpreter computes, warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
EPSILON = 1e-5
NORMS = [variant for variant in VARIANTS if isinstance(variant.case, NormCase)]
GATES = [variant for variant in VARIANTS if isinstance(variant.case, GateCase)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", NORMS, ids=lambda variant: variant.name)
def test_each_norm_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, NormCase)
    x, residual = random(1, 5, case.width), random(1, 5, case.width, seed=1)
    factor_I = random(case.width, seed=2)
    if not case.has_residual:
        found = interpreted_kernels().rms_norm(x, factor_I, EPSILON)
        torch.testing.assert_close(found, rms_norm_plainly(x, factor_I, EPSILON), rtol=2e-6, atol=2e-6)
        return
    total, normed = interpreted_kernels().add_rms_norm(x, residual, factor_I, EPSILON)
    expected_total, expected = add_rms_norm_plainly(x, residual, factor_I, EPSILON)
    assert torch.equal(total, expected_total)
    torch.testing.assert_close(normed, expected, rtol=2e-6, atol=2e-6)


def test_norms_of_heads_are_read_where_they_lie() -> None:
    """Queries are a part of a joined product: the rows of a head lie at two strides."""
    joined = random(1, 7, 6 * 16)
    query = joined[..., : 4 * 16].view(1, 7, 4, 16)
    assert not query.is_contiguous()
    factor_I = random(16, seed=2)
    expected = rms_norm_plainly(query, factor_I, EPSILON)
    torch.testing.assert_close(interpreted_kernels().rms_norm(query, factor_I, EPSILON), expected, rtol=2e-6, atol=2e-6)
    heads_first = query.permute(0, 2, 3, 1)  # the last dim is not dense, so the rows are copied
    factor_T = random(7, seed=3)
    found = interpreted_kernels().rms_norm(heads_first, factor_T, EPSILON)
    torch.testing.assert_close(found, rms_norm_plainly(heads_first, factor_T, EPSILON), rtol=2e-6, atol=2e-6)


def test_the_norm_is_that_of_transformers() -> None:
    norm = LlamaRMSNorm(48, eps=EPSILON)
    norm.weight.data = random(48, seed=2)
    x = random(3, 48) * torch.tensor([1e-3, 1.0, 50.0]).unsqueeze(1)
    torch.testing.assert_close(rms_norm_plainly(x, norm.weight.data, EPSILON), norm(x).detach())


@pytest.mark.parametrize("variant", GATES, ids=lambda variant: variant.name)
def test_each_gate_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, GateCase)
    gate_TI, up_TI = (random(3, 2 * case.width) * 3).split(case.width, dim=-1)
    gate_TI[0, :4] = torch.tensor([100.0, -100.0, 0.0, -1e-6])
    found = interpreted_kernels().gate_up(gate_TI, up_TI, case.activation)
    # Where 1 + erf or 1 + tanh is nearly 0, the sum keeps the absolute error of its parts.
    torch.testing.assert_close(found, gate_up_plainly(gate_TI, up_TI, case.activation), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "name"), [("silu", "silu"), ("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh")]
)
def test_the_activations_are_those_of_transformers(activation: object, name: str) -> None:
    gate_TI, up_TI = random(3, 8) * 3, random(3, 8, seed=1)
    found = gate_up_plainly(gate_TI, up_TI, activation)  # type: ignore[arg-type]
    torch.testing.assert_close(found, ACT2FN[name](gate_TI) * up_TI)


@pytest.mark.parametrize("vocab_size", [7, SCAN_IDS, SCAN_IDS + 1, 3 * SCAN_IDS - 5])
def test_scans_agree_with_plain_torch(vocab_size: int) -> None:
    scores_NV = random(9, vocab_size) * 4
    scores_NV[0, 2] = scores_NV[0, vocab_size - 1] = 99.0  # the first of equal scores counts
    scores_NV[1, 1] = torch.nan
    scores_NV[2, vocab_size - 1] = torch.inf
    scores_NV[3, 0] = -torch.inf
    scores_NV[4] = -30_000.0
    scores_NV[5] = scores_NV[5].abs() + 30_000.0
    scores_NV[6, : vocab_size - 1] = -torch.inf
    wide = torch.cat([scores_NV, torch.full((9, 3), 1e6)], dim=1)
    found = interpreted_kernels().first_pass(wide[:, :vocab_size], ScoreChanges()).scan
    expected = TorchRowScanner().scan(scores_NV, wants_mass=True)
    assert found.not_finite_N.tolist() == expected.not_finite_N.tolist()
    assert found.not_finite_N.tolist() == [False, True, True, True, False, False, True, False, False]
    finite = ~expected.not_finite_N
    assert found.best_N[finite].tolist() == expected.best_N[finite].tolist()
    assert found.best_N[0] == 2
    assert found.log_mass_N is not None
    assert expected.log_mass_N is not None
    torch.testing.assert_close(found.log_mass_N[finite], expected.log_mass_N[finite], rtol=1e-6, atol=1e-5)


SCANS = [variant for variant in VARIANTS if variant.kernel == "scan_parts"]
SCAN_VOCAB = SCAN_IDS + 500


def lists_of(sizes: list[int], *, seed: int, width: int = LIST_ENTRIES + 70) -> IdLists:
    """Return distinct ids of both parts of a row. Behind the end of a list stand ids that are no part of it."""
    order_SV = torch.stack(
        [torch.randperm(SCAN_VOCAB, generator=torch.Generator().manual_seed(seed + slot)) for slot in range(len(sizes))]
    )
    return IdLists(order_SV[:, :width].contiguous(), torch.tensor(sizes))


def changes_of(names: tuple[Change, ...]) -> ScoreChanges:
    """Return changes of four rows, some of which do not ask, over three slots."""
    repetition = RepetitionChange(
        torch.tensor([2, -1, 0, 1]), lists_of([LIST_ENTRIES + 60, 0, 9], seed=1), torch.tensor([1.7, 0.5, 0.8])
    )
    counts = CountChange(
        torch.tensor([1, 0, -1, 2]),
        lists_of([LIST_ENTRIES + 1, 30, 1], seed=5),
        torch.randint(0, 4, (3, LIST_ENTRIES + 90), generator=torch.Generator().manual_seed(3)).float(),
        torch.tensor([0.5, -1.0, 30.0]),
        torch.tensor([0.25, 2.0, 0.0]),
    )
    bias = BiasChange(torch.tensor([0, 1, -1, -1]), lists_of([3, 80, 5], seed=9), random(3, 700, seed=4) * 20)
    forbidden_SV = random(3, SCAN_VOCAB, seed=6) > 0
    forbidden_SV[1, :SCAN_IDS] = True  # no id of the first part may follow
    mask = MaskChange(torch.tensor([-1, 1, 2, -1]), forbidden_SV)
    temperatures = Temperatures(torch.tensor([0, 2, -1, 1]), torch.tensor([0.3, 1.0, 4.0]))
    return ScoreChanges(
        repetition=repetition if "repetition" in names else None,
        counts=counts if "counts" in names else None,
        bias=bias if "bias" in names else None,
        mask=mask if "mask" in names else None,
        temperatures=temperatures if "temperature" in names else None,
    )


# Beside the variants of the table, each change alone: rows tell by numbers for which changes they ask.
SCAN_CASES = list(
    dict.fromkeys(
        (
            *(variant.case for variant in SCANS if isinstance(variant.case, ScanCase)),
            *(ScanCase(SCAN_VOCAB, (change,), is_drawn) for change in SCORE_CHANGES for is_drawn in (False, True)),
            ScanCase(SCAN_VOCAB, ("counts", "mask")),
        )
    )
)


@pytest.mark.parametrize("case", SCAN_CASES, ids=lambda case: f"{'+'.join(case.changes)} {case.has_candidates}")
def test_each_first_pass_agrees_with_plain_torch(case: ScanCase) -> None:
    logits_NV = random(4, SCAN_VOCAB + 3)[:, :SCAN_VOCAB] * 3
    logits_NV[0, 17] = -torch.inf
    before_NV = logits_NV.clone()
    changes = changes_of(case.changes)
    num_candidates = 30 if case.has_candidates else 0
    found, expected = (
        one.first_pass(logits_NV, changes, num_candidates) for one in (interpreted_kernels(), TorchRowScanner())
    )
    assert torch.equal(logits_NV, before_NV)
    torch.testing.assert_close(found.scores_NV, expected.scores_NV, rtol=0, atol=0)
    assert torch.equal(found.best_N, expected.best_N)
    assert found.scan.not_finite_N.tolist() == expected.scan.not_finite_N.tolist() == [True, False, False, False]
    assert found.scan.log_mass_N is not None
    assert expected.scan.log_mass_N is not None
    torch.testing.assert_close(found.scan.log_mass_N, expected.scan.log_mass_N, rtol=1e-6, atol=1e-5)
    assert (found.tempered_mass_N is None) == (expected.tempered_mass_N is None)
    if found.tempered_mass_N is not None and expected.tempered_mass_N is not None:
        torch.testing.assert_close(found.tempered_mass_N, expected.tempered_mass_N, rtol=1e-5, atol=1e-5)
    if changes.changes_scores:
        assert not torch.equal(found.scores_NV, logits_NV)
    assert (found.candidates_NC is None) == (expected.candidates_NC is None) == (not case.has_candidates)
    if found.candidates_NC is not None:
        assert found.candidates_NC.tolist() == first_best(expected.scores_NV, num_candidates).tolist()
        best_NC = expected.scores_NV.topk(num_candidates).values
        assert torch.equal(expected.scores_NV.gather(1, found.candidates_NC), best_NC)


def test_a_rank_changes_its_part_of_the_scores_as_the_whole_rows_are_changed() -> None:
    """The lists of a request then hold ids that lie before the part or behind it."""
    logits_NV = random(4, SCAN_VOCAB) * 3
    changes = changes_of(("repetition", "counts", "bias", "mask", "temperature"))
    whole = TorchRowScanner().first_pass(logits_NV, changes)
    for first_id, num_ids in ((0, 700), (700, SCAN_VOCAB - 700)):
        own = slice(first_id, first_id + num_ids)
        for kernels in (interpreted_kernels(), TorchRowScanner()):
            found = kernels.first_pass(logits_NV[:, own], changes.within(first_id, num_ids), 30)
            torch.testing.assert_close(found.scores_NV, whole.scores_NV[:, own], rtol=0, atol=0)
            assert found.best_N.tolist() == whole.scores_NV[:, own].argmax(-1).tolist()


def first_best(scores_NV: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """Return the ids of the best scores of each row, the best first, and of equal scores the first ids first."""
    return scores_NV.sort(dim=-1, descending=True, stable=True).indices[:, :num_candidates]


@pytest.mark.parametrize(
    ("vocab_size", "num_candidates"),
    [(7, 7), (300, 24), (SCAN_IDS, 1), (SCAN_IDS + 3, 24), (SCAN_IDS + 3, 1024), (2 * SCAN_IDS + 9, SCAN_IDS)],
)
def test_candidates_are_the_best_scores_and_the_first_of_equal_ones(vocab_size: int, num_candidates: int) -> None:
    scores_NV = random(8, vocab_size) * 4
    scores_NV[1, 3:] = -torch.inf  # fewer possible ids than candidates
    scores_NV[2] = -torch.inf
    scores_NV[2, vocab_size - 1] = -3e38
    scores_NV[3] = -torch.inf
    scores_NV[4] = 0.25
    scores_NV[5] = scores_NV[5].round()  # equal scores at the cut, and zeros of both signs
    scores_NV[6, 1::2] = torch.nan
    scores_NV[7] = scores_NV[7].sort().values  # all of the best in the last part
    wide = torch.cat([scores_NV, torch.full((8, 3), 1e6)], dim=1)
    found_NC = interpreted_kernels().first_pass(wide[:, :vocab_size], ScoreChanges(), num_candidates).candidates_NC
    assert found_NC is not None
    assert (found_NC.shape, found_NC.dtype) == ((8, num_candidates), torch.int64)
    assert found_NC.min() >= 0
    assert found_NC.max() < vocab_size
    named = [0, 1, 2, 3, 4, 5, 7]  # the rows without a NaN
    assert torch.equal(
        scores_NV.gather(1, found_NC)[named], torch.topk(scores_NV, num_candidates, dim=-1).values[named]
    )
    assert found_NC[named].tolist() == first_best(scores_NV, num_candidates)[named].tolist()
    assert all(len(set(row)) == num_candidates for row in found_NC.tolist())


def test_a_pass_finds_no_more_candidates_than_a_part_has_ids() -> None:
    """The caller then searches the whole rows (`sampling/candidates.py`)."""
    logits_NV = random(1, SCAN_IDS + 40)
    assert interpreted_kernels().first_pass(logits_NV, ScoreChanges(), SCAN_IDS + 1).candidates_NC is None
    assert interpreted_kernels().first_pass(logits_NV, ScoreChanges()).candidates_NC is None


DRAWING = (
    Seat(SamplingParams(do_sample=True, temperature=0.8, top_k=20, seed=3)),
    Seat(SamplingParams(do_sample=True, temperature=1.4, top_p=0.9, seed=4)),
    Seat(SamplingParams(do_sample=True, temperature=3.0, seed=5)),  # the tail wins now and then
)
MORE = (
    Seat(SamplingParams(top_n_tokens=4)),
    Seat(SamplingParams(do_sample=True, top_k=2, seed=6, repetition_penalty=1.3, top_n_tokens=2), [4, 5]),
)


@pytest.mark.parametrize("seats", [DRAWING[:1], DRAWING, (*DRAWING, MORE[0]), MORE[:1], (*DRAWING, *MORE)])
def test_draws_search_no_whole_row_for_their_candidates(
    seats: tuple[Seat, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_NV = random(len(seats), SCAN_VOCAB, seed=8) * 3
    expected = sample(logits_NV, seats)
    searched: list[int] = []
    topk = torch.topk

    def counted(input: torch.Tensor, k: int, **options: Any) -> Any:
        searched.append(input.shape[-1] // k)
        return topk(input, k, **options)

    monkeypatch.setattr(torch, "topk", counted)
    found = sample(logits_NV, seats, scanner=DeviceRowScanner(interpreted_kernels()))
    assert found.tokens_N.tolist() == expected.tokens_N.tolist()
    for one, other in zip(found.top, expected.top, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or one.ids.tolist() == other.ids.tolist()
    # Each search is one among the candidates of the two parts, besides that for the alternatives to changed scores.
    wants_model_scores = seats[-1] is MORE[1]
    assert len(searched) == 1 + wants_model_scores
    assert searched[0] == 2


def test_the_table_has_passes_with_and_without_changes() -> None:
    found = {variant.case.changes for variant in SCANS if isinstance(variant.case, ScanCase)}
    assert found == {(), ("temperature",), SCORE_CHANGES, CHANGES}
    with_candidates = {variant.case.changes for variant in SCANS if getattr(variant.case, "has_candidates", False)}
    assert with_candidates == found


@pytest.mark.parametrize("num_ids", [1, 255, 1024])
def test_noise_is_that_of_plain_torch(num_ids: int) -> None:
    seeds_S2 = torch.tensor([[0, 0], [2**32 - 1, 2**32 - 1], [12_345, 2**31]])
    positions_S = torch.tensor([0, 7, 2**31])
    ids_SC = torch.randint(0, 200_000, (3, num_ids + 3), generator=torch.Generator().manual_seed(1))[:, :num_ids]
    ids_SC[:, 0] = noise.TAIL_ID
    found_SC = interpreted_kernels().gumbel(seeds_S2, positions_S, ids_SC)
    torch.testing.assert_close(found_SC, noise.gumbel(seeds_S2, positions_S, ids_SC), rtol=1e-14, atol=1e-15)


def test_a_gate_is_not_its_other_half() -> None:
    """The kernel and its reference would agree if both exchanged the halves."""
    gate_TI, up_TI = random(2, 8), random(2, 8, seed=1)
    found = interpreted_kernels().gate_up(gate_TI, up_TI, "silu")
    torch.testing.assert_close(found, functional.silu(gate_TI) * up_TI, rtol=1e-5, atol=1e-6)
