"""Ranks that share a vocabulary find what one rank finds, and only the rows that are needed whole travel whole."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from textmill_shard.distributed.index_ranges import even_range
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.model.forward_batch import ForwardOutput, HostScan
from textmill_shard.model.joined_logits import LogitsJoiner
from textmill_shard.native.ranks import RankRoom

from tests.fakes.native_cases import native_kernels
from tests.fakes.rooms import by_each, rooms

VOCAB = 1001
NUM_RANKS = 3
PARTS = [even_range(VOCAB, TensorParallel(rank, NUM_RANKS)) for rank in range(NUM_RANKS)]


def make_logits() -> torch.Tensor:
    logits_NV = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(3)) * 3
    logits_NV[1, 900] = logits_NV[1, 20] = 30.0  # equal best scores in the parts of two ranks
    logits_NV[2, 700] = torch.nan
    logits_NV[3, 5] = torch.inf
    logits_NV[4, :500] = -torch.inf  # a part without any possible id
    return logits_NV


@dataclass(frozen=True, slots=True)
class Joined:
    """What a rank got, and how many exchanges that took."""

    output: ForwardOutput
    num_exchanges: int


def part_of(logits_NV: torch.Tensor, rank: int) -> torch.Tensor:
    return logits_NV[:, PARTS[rank].start : PARTS[rank].stop].contiguous()


def native_scan(part_NV: torch.Tensor) -> HostScan:
    best_N, not_finite_N, log_mass_N = native_kernels().scan_rows(part_NV, wants_mass=True)
    assert log_mass_N is not None
    scores_N = part_NV.gather(1, best_N.unsqueeze(1)).squeeze(1)
    return HostScan(best_N.numpy(), scores_N.numpy(), not_finite_N.numpy(), log_mass_N.numpy())


def join(logits_NV: torch.Tensor, whole: list[int] | None, *, has_scan: bool = False) -> list[Joined]:
    parts = [part_of(logits_NV, rank) for rank in range(NUM_RANKS)]
    scans = [native_scan(part_NV) if has_scan else None for part_NV in parts]
    rows = None if whole is None else np.array(whole, dtype=np.int64)

    def work(room: RankRoom) -> Joined:
        parallel = TensorParallel(room.rank, NUM_RANKS, room=room)
        joiner = LogitsJoiner(parallel, tuple(len(part) for part in PARTS))
        output = joiner.join(ForwardOutput(parts[room.rank], None, scan=scans[room.rank]), rows)
        return Joined(output, room.num_exchanges)

    with rooms(NUM_RANKS) as made:
        return by_each(made, work)


@pytest.mark.parametrize("has_scan", [False, True])
def test_facts_of_the_parts_make_the_facts_of_the_rows(has_scan: bool) -> None:
    native_kernels()
    logits_NV = make_logits()
    for joined in join(logits_NV, [], has_scan=has_scan):
        scan = joined.output.scan
        assert scan is not None
        assert scan.not_finite_N.tolist() == [False, False, True, True, True, False]
        for row in (0, 1, 5):
            assert scan.best_N[row] == int(logits_NV[row].argmax())
            assert scan.best_scores_N[row] == logits_NV[row].max().item()
            assert scan.log_mass_N[row] == pytest.approx(logits_NV[row].double().logsumexp(0).item(), rel=1e-6)
            only_best_V = torch.full((VOCAB,), -torch.inf)
            only_best_V[scan.best_N[row]] = logits_NV[row].max()
            assert torch.equal(joined.output.logits_NV[row], only_best_V)
        assert scan.best_N[1] == 20
        assert joined.num_exchanges == 1


@pytest.mark.parametrize("whole", [[0], [1, 4, 5], [0, 1, 2, 3, 4]])
def test_rows_that_are_needed_whole_come_whole(whole: list[int]) -> None:
    native_kernels()
    logits_NV = make_logits()
    for joined in join(logits_NV, whole):
        assert torch.equal(joined.output.logits_NV[whole].nan_to_num(7.0), logits_NV[whole].nan_to_num(7.0))
        assert joined.num_exchanges == 2
        others = [row for row in (0, 1, 5) if row not in whole]
        assert (joined.output.logits_NV[others] > -torch.inf).sum(1).tolist() == [1] * len(others)


@pytest.mark.parametrize("whole", [None, [0, 1, 2, 3, 4, 5]])
def test_all_rows_whole_need_one_exchange(whole: list[int] | None) -> None:
    native_kernels()
    logits_NV = make_logits()
    for joined in join(logits_NV, whole):
        assert torch.equal(joined.output.logits_NV.nan_to_num(7.0), logits_NV.nan_to_num(7.0))
        assert joined.num_exchanges == 1


def test_a_step_without_rows_has_no_logits() -> None:
    native_kernels()
    for joined in join(make_logits()[:0], None):
        assert joined.output.logits_NV.shape == (0, VOCAB)
        assert joined.num_exchanges == 0
