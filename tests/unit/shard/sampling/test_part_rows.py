"""Ranks that share a vocabulary sample what one rank samples, and send candidates instead of whole rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from textmill_shard.distributed.index_ranges import even_range
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.part_rows import WholeRows
from textmill_shard.sampling.part_sampler import GivenPart, PartSampler
from textmill_shard.sampling.row_scan import RowScanner, TorchRowScanner
from textmill_shard.sampling.sampler import SampledRows
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import Seat, random_logits, sample, seated_sampler, step_rows

VOCAB = 501
NUM_CANDIDATES = 24
DRAWS = SamplingParams(do_sample=True, temperature=0.8, seed=11, wants_logprobs=True)
GREEDY = SamplingParams(wants_logprobs=True)


def allowed(*ids: int) -> np.ndarray:  # type: ignore[type-arg]
    mask_V = np.zeros(VOCAB, dtype=bool)
    mask_V[list(ids)] = True
    return mask_V


# Each is a request of its own; steps mix them.
SEATS = {
    "greedy": Seat(GREEDY),
    "temperature": Seat(DRAWS),
    "hot": Seat(replace(DRAWS, temperature=3.0)),
    "top-k": Seat(replace(DRAWS, top_k=7)),
    "top-p": Seat(replace(DRAWS, top_p=0.9)),
    "wide top-p": Seat(replace(DRAWS, temperature=4.0, top_p=0.98)),
    "min-p": Seat(replace(DRAWS, min_p=0.05)),
    "typical-p": Seat(replace(DRAWS, typical_p=0.6)),
    "hot typical-p": Seat(replace(DRAWS, temperature=3.0, typical_p=0.4)),
    "all filters": Seat(replace(DRAWS, top_k=40, top_p=0.95, min_p=0.01, typical_p=0.9)),
    "repetition": Seat(replace(DRAWS, repetition_penalty=1.4), prompt=(1, 20, 499), output=(250, 3)),
    "greedy repetition": Seat(replace(GREEDY, repetition_penalty=1.9), prompt=tuple(range(0, VOCAB, 3))),
    "presence": Seat(replace(DRAWS, presence_penalty=1.5, frequency_penalty=0.3), output=(4, 4, 400)),
    "bias": Seat(replace(GREEDY, logit_bias=((2, 40.0), (490, 41.0)))),
    "bias of a draw": Seat(replace(DRAWS, logit_bias=((7, 9.0), (300, -5.0)), top_p=0.8)),
    "allowed": Seat(replace(DRAWS, allowed_ids=(5, 260, 480))),
    "bad": Seat(replace(DRAWS, bad_sequences=((1,), (2, 3)))),
    "n-grams": Seat(replace(GREEDY, no_repeat_ngram_size=2), prompt=(1, 2, 1)),
    "forced": Seat(replace(GREEDY, forced_first_ids=(400,))),
    "end": Seat(replace(DRAWS, min_new_tokens=4, end_ids=(0, 333), temperature=2.0)),
    "dry": Seat(replace(DRAWS, dry_multiplier=2.0, dry_allowed_length=1), prompt=(5, 6, 7, 5, 6)),
    "watermark": Seat(replace(DRAWS, watermark=True)),
    "grammar": Seat(replace(DRAWS, has_grammar=True), allowed_V=allowed(3, 4, 299, 500)),
    "greedy grammar": Seat(replace(GREEDY, has_grammar=True), allowed_V=allowed(170)),
    "alternatives": Seat(replace(GREEDY, top_n_tokens=5)),
    "alternatives of a draw": Seat(replace(DRAWS, top_n_tokens=3, top_p=0.7)),
}
GROUPS = {
    "draws": ("greedy", "temperature", "top-k", "top-p", "min-p", "typical-p", "all filters"),
    "wide draws": ("hot", "wide top-p", "hot typical-p", "temperature"),
    "every option": tuple(SEATS),
}


class PassingScanner(TorchRowScanner):
    """Makes the first pass as a GPU's kernels do, so that the stages of the pass do not run one by one."""

    def __init__(self) -> None:
        self.changer = self


@dataclass(frozen=True, slots=True)
class Shared:
    """What ranks have sampled together, and what they sent."""

    sampled: SampledRows
    gifts: list[GivenPart]
    looked: list[int]  # rows that were laid together


def vocabulary_of(rank: int, sizes: Sequence[int]) -> SharedVocabulary:
    return SharedVocabulary(TensorParallel(rank, len(sizes)), tuple(sizes))


def sizes_of(num_ranks: int, vocab: int = VOCAB) -> list[int]:
    return [len(even_range(vocab, TensorParallel(rank, num_ranks))) for rank in range(num_ranks)]


def sample_shared(
    logits_NV: torch.Tensor,
    seats: Sequence[Seat],
    *,
    num_ranks: int,
    num_candidates: int = NUM_CANDIDATES,
    scanner: RowScanner | None = None,
) -> Shared:
    """Do what the ranks do: each gives its part; rank 0 joins, draws, looks at open rows and draws these again."""
    vocab = logits_NV.shape[1]
    sizes = sizes_of(num_ranks, vocab)
    parts = logits_NV.split(sizes, dim=1)
    samplers = [seated_sampler(seats, num_candidates=num_candidates, scanner=scanner) for _ in sizes]
    sides = [PartSampler(sampler, vocabulary_of(rank, sizes)) for rank, sampler in enumerate(samplers)]
    rows = step_rows(samplers[0], range(len(seats)))
    gifts = [side.give(part.contiguous(), rows) for side, part in zip(sides, parts, strict=True)]
    side = sides[0]
    draft = side.draft(gifts[0], side.join(gifts[0], torch.stack([gift.words_W for gift in gifts])), rows)
    open_N = np.zeros(len(seats), dtype=bool)
    if draft.open_N is not None:
        open_N |= draft.open_N.numpy()
    arrays = [] if draft.top is None else [tensor.numpy() for tensor in draft.top.tensors]
    if arrays:
        open_N[side.tied_rows(draft, arrays[0])] = True
    looked = np.flatnonzero(open_N)
    assert gifts[0].may_look or not len(looked)
    whole = WholeRows(
        looked,
        torch.cat([gift.logits_NV for gift in gifts], dim=1)[looked],
        torch.cat([gift.scores_NV for gift in gifts], dim=1)[looked],
    )
    sampled = side.settle(draft, whole) if len(looked) else draft.sampled
    top = samplers[0].alternatives(draft, *arrays, whole=whole) if arrays else ()
    return Shared(replace(sampled, top=top), gifts, looked.tolist())


def assert_equal(shared: SampledRows, alone: SampledRows, *, with_tokens: bool = True) -> None:
    fine = ~alone.not_finite_N
    assert torch.equal(shared.not_finite_N, alone.not_finite_N)
    if with_tokens:
        assert shared.tokens_N[fine].tolist() == alone.tokens_N[fine].tolist()
    assert (shared.logprobs_N is None) == (alone.logprobs_N is None)
    if shared.logprobs_N is not None and alone.logprobs_N is not None:
        torch.testing.assert_close(
            shared.logprobs_N[fine], alone.logprobs_N[fine], rtol=1e-5, atol=1e-5, equal_nan=True
        )
    assert (shared.stuck_N is None) == (alone.stuck_N is None)
    if shared.stuck_N is not None and alone.stuck_N is not None:
        assert torch.equal(shared.stuck_N[fine], alone.stuck_N[fine])
    assert len(shared.top) == len(alone.top)
    for mine, one in zip(shared.top, alone.top, strict=True):
        assert (mine is None) == (one is None)
        if mine is not None and one is not None:
            assert mine.ids.tolist() == one.ids.tolist()
            np.testing.assert_allclose(mine.logprobs, one.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("is_pass", [False, True])
def test_ranks_sample_what_one_rank_samples(num_ranks: int, group: str, is_pass: bool) -> None:
    num_looked = 0
    for seed in range(3):
        seats = [replace(SEATS[name], params=replace(SEATS[name].params, seed=seed)) for name in GROUPS[group]]
        logits_NV = random_logits(len(seats), vocab=VOCAB, seed=seed)
        shared = sample_shared(logits_NV, seats, num_ranks=num_ranks, scanner=PassingScanner() if is_pass else None)
        assert_equal(shared.sampled, sample(logits_NV, seats, num_candidates=NUM_CANDIDATES))
        num_looked += len(shared.looked)
    assert num_looked > 0, "some of these draws need more than the candidates"


@pytest.mark.parametrize("name", SEATS)
def test_each_option_alone(name: str) -> None:
    for seed in range(3):
        seats = [replace(SEATS[name], params=replace(SEATS[name].params, seed=seed))] * 2
        logits_NV = random_logits(2, vocab=VOCAB, seed=seed)
        for scanner in (None, PassingScanner()):
            shared = sample_shared(logits_NV, seats, num_ranks=3, scanner=scanner)
            assert_equal(shared.sampled, sample(logits_NV, seats, num_candidates=NUM_CANDIDATES))


def expected_words(
    *, rows: int, drawn: int = 0, candidates: int = 0, rated: int = 0, best: int = 0, changed: bool = False
) -> int:
    """Return the words that a rank sends, counted by hand.

    Of each row: best id, its score, the normaliser, whether all is finite, and the logit where scores are changed. Of
    each row that draws: an id and a score for each candidate, the logit where scores are changed, and two sums. Of
    each row with alternatives: an id and a logit for each.
    """
    return (4 + changed) * rows + drawn * ((2 + changed) * candidates + 2) + 2 * rated * best


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("greedy",) * 5, expected_words(rows=5)),
        # A top-k of 7 travels with 16 further candidates, which hold its ties.
        (("greedy", "top-k", "top-k"), expected_words(rows=3, drawn=2, candidates=7 + 16)),
        (("temperature",) * 4, expected_words(rows=4, drawn=4, candidates=NUM_CANDIDATES)),
        (("greedy", "repetition"), expected_words(rows=2, drawn=1, candidates=NUM_CANDIDATES, changed=True)),
        (("greedy grammar", "bias"), expected_words(rows=2, changed=True)),
        (("greedy", "alternatives"), expected_words(rows=2, rated=1, best=5 + 16)),
    ],
)
def test_candidates_travel_instead_of_whole_rows(names: Sequence[str], expected: int) -> None:
    seats = [SEATS[name] for name in names]
    shared = sample_shared(random_logits(len(seats), vocab=VOCAB), seats, num_ranks=2)
    for gift in shared.gifts:
        assert gift.words_W.dtype == torch.int32
        assert len(gift.words_W) == expected
        assert len(gift.words_W) < len(seats) * VOCAB // 2


def test_a_large_vocabulary_travels_as_a_twelfth() -> None:
    """16 rows of 49,152 ids that draw by temperature: 131 kB of each of two ranks instead of 1.57 MB."""
    vocab = 49_152
    seats = [replace(SEATS["temperature"], params=replace(DRAWS, seed=seed)) for seed in range(16)]
    logits_NV = random_logits(16, vocab=vocab)
    shared = sample_shared(logits_NV, seats, num_ranks=2, num_candidates=1024)
    assert 4 * len(shared.gifts[0].words_W) == 4 * expected_words(rows=16, drawn=16, candidates=1024) == 131_456
    assert 4 * 16 * vocab // 2 == 1_572_864
    assert_equal(shared.sampled, sample(logits_NV, seats, num_candidates=1024))


def test_ties_go_to_the_smallest_id_and_ties_at_the_cut_are_all_told() -> None:
    logits_NV = torch.zeros(2, VOCAB)
    logits_NV[0, 490] = logits_NV[0, 130] = 3.0
    logits_NV[1, 40:440] = 2.0  # more ties than travel, on both ranks
    seats = [Seat(replace(GREEDY, top_n_tokens=2))] * 2
    shared = sample_shared(logits_NV, seats, num_ranks=2)
    assert shared.sampled.tokens_N.tolist() == [130, 40]
    assert shared.looked == [1]
    first, second = shared.sampled.top
    assert first is not None
    assert second is not None
    assert first.ids.tolist() == [130, 490]
    assert second.ids.tolist() == list(range(40, 440))


def test_rows_that_are_not_finite_are_marked_and_harm_no_other_row() -> None:
    seats = [SEATS["temperature"], SEATS["greedy"], SEATS["top-p"], SEATS["repetition"], SEATS["top-k"]]
    logits_NV = random_logits(5, vocab=VOCAB)
    logits_NV[0, 400] = torch.nan
    logits_NV[1, 3] = torch.inf
    logits_NV[2, 260] = -torch.inf
    shared = sample_shared(logits_NV, seats, num_ranks=2)
    assert shared.sampled.not_finite_N.tolist() == [True, True, True, False, False]
    assert shared.sampled.tokens_N[:3].tolist() == [0, 0, 0]
    assert_equal(shared.sampled, sample(logits_NV, seats, num_candidates=NUM_CANDIDATES))


def test_a_part_without_a_possible_id_loses() -> None:
    """All that a mask allows lies with one rank."""
    for ids in ((3, 4), (400, 450), (200, 300)):
        seats = [replace(SEATS[name], allowed_V=allowed(*ids)) for name in ("grammar", "greedy grammar")]
        logits_NV = random_logits(2, vocab=VOCAB)
        shared = sample_shared(logits_NV, seats, num_ranks=3)
        assert_equal(shared.sampled, sample(logits_NV, seats, num_candidates=NUM_CANDIDATES))
        assert set(shared.sampled.tokens_N.tolist()) <= set(ids)


def test_rows_without_a_possible_id_are_stuck() -> None:
    params = replace(DRAWS, allowed_ids=(5,), bad_sequences=((5,),))
    seats = [Seat(params), SEATS["temperature"]]
    logits_NV = random_logits(2, vocab=VOCAB)
    shared = sample_shared(logits_NV, seats, num_ranks=2)
    assert shared.sampled.stuck_N is not None
    assert shared.sampled.stuck_N.tolist() == [True, False]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_vocabulary_smaller_than_the_candidates(num_ranks: int) -> None:
    names = ("temperature", "top-p", "repetition", "alternatives", "typical-p")
    for seed in range(5):
        seats = [replace(SEATS[name], prompt=(1, 2), output=()) for name in names]
        logits_NV = random_logits(len(seats), vocab=20, seed=seed)
        shared = sample_shared(logits_NV, seats, num_ranks=num_ranks, num_candidates=1024)
        assert not shared.gifts[0].may_look
        assert_equal(shared.sampled, sample(logits_NV, seats))
