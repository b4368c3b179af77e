"""The trial of the largest step draws with everything that requests can ask for, in the memory of the real sampler."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, cast

import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.draw_trial import DrawTrial
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.ranks import RankRoom
from textmill_shard.sampling import draw
from textmill_shard.sampling.logprobs import SLICE_TOKENS
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import DEFAULT_NUM_CANDIDATES, Sampler

from tests.fakes.plain_kernels import PlainKernels
from tests.fakes.thread_ranks import Meeting, ThreadRoom

VOCABULARY = 3000  # more than the candidates of a draw
NUM_SLOTS = 6
NUM_ROWS = 5
LONGEST_TEXT = 200
CPU = torch.device("cpu")


class Watched(PlainKernels):
    """Notes the rows, the changes and the number of candidates of each pass."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, frozenset[str], int]] = []

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        names = frozenset(field.name for field in fields(changes) if getattr(changes, field.name) is not None)
        self.passes.append((len(logits_NV), names, num_candidates))
        return super().first_pass(logits_NV, changes, num_candidates)


def output() -> ForwardOutput:
    logits_NV = torch.randn(NUM_ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    return ForwardOutput(logits_NV=logits_NV, hidden_TD=None)


def make_trial(kernels: Watched, vocabulary: SharedVocabulary | None = None, project: Any = None) -> DrawTrial:
    return DrawTrial(
        num_slots=NUM_SLOTS,
        vocab_size=VOCABULARY,
        longest_text=LONGEST_TEXT,
        device=CPU,
        scanner=DeviceRowScanner(kernels),
        vocabulary=vocabulary,
        project=project,
    )


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the stages that have changed scores, and of the draws from all scores of rows."""
    names: list[str] = []

    def noting(target: Any, method: str, name: str) -> None:
        before = getattr(target, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            names.append(name)
            return before(*args, **kwargs)

        monkeypatch.setattr(target, method, call)

    for stage in Sampler(num_slots=1, device=CPU).stages:
        noting(type(stage), "apply", type(stage).__name__)
    noting(draw, "_choose_full", "all scores")
    noting(draw, "_choose_beyond", "tail")
    return names


# A mask stands for `min_new_tokens`, and forced ids are a part of the first and the last step of a request alone.
STAGES = {type(stage).__name__ for stage in Sampler(num_slots=1, device=CPU).stages} - {"MinNewTokens", "ForcedIds"}


def test_a_trial_draws_by_one_pass_and_by_all_stages(applied: list[str]) -> None:
    kernels = Watched()
    make_trial(kernels).sample(output())
    every = frozenset(field.name for field in fields(ScoreChanges))
    assert kernels.passes[0] == (NUM_ROWS, every, DEFAULT_NUM_CANDIDATES)
    assert set(applied) == {*STAGES, "all scores", "tail"}
    assert applied.count("all scores") == applied.count("tail") == 2


def test_a_trial_takes_the_memory_of_masks_and_lists_of_all_slots() -> None:
    sampler = make_trial(Watched())._sampler
    forbidden = sampler.grammar_mask.change(torch.zeros(1))
    assert forbidden is not None
    assert forbidden.forbidden_SV.shape == (NUM_SLOTS, VOCABULARY)
    change = sampler._repetition.change(torch.zeros(1))
    assert change.lists.ids_SE.shape[0] == NUM_SLOTS
    assert change.lists.ids_SE.shape[1] >= LONGEST_TEXT


def test_ranks_that_share_a_vocabulary_try_their_parts(applied: list[str]) -> None:
    """Without exchanges each rank takes the memory of all parts, and with exchanges the ranks make equal calls."""
    sizes = (1700, VOCABULARY - 1700)
    meeting = Meeting()

    def run(rank: int, *, rests: bool) -> list[tuple[int, frozenset[str], int]]:
        parallel = TensorParallel(rank, 2, room=cast(RankRoom, ThreadRoom(meeting, rank)))
        kernels, vocabulary = Watched(), SharedVocabulary(parallel, sizes)
        trial = make_trial(kernels, vocabulary)
        part_NV = output().logits_NV[:, vocabulary.first_id : vocabulary.first_id + vocabulary.num_ids].contiguous()
        if rests:
            with parallel.at_rest():
                trial.sample(ForwardOutput(logits_NV=part_NV, hidden_TD=None))
        else:
            trial.sample(ForwardOutput(logits_NV=part_NV, hidden_TD=None))
        return kernels.passes

    alone = run(0, rests=True)
    assert not meeting.sent_bytes
    assert set(applied) == {*STAGES, "all scores", "tail"}
    with ThreadPoolExecutor(2) as threads:
        found = [future.result(60) for future in [threads.submit(run, rank, rests=False) for rank in (0, 1)]]
    assert found[0] == found[1] == alone
    assert len(meeting.sent_bytes) == 4  # for each draw the gift, and rows that are laid together


@pytest.mark.parametrize("has_parts", [False, True])
def test_a_trial_rates_as_many_positions_of_a_prompt_as_are_rated_together(has_parts: bool) -> None:
    projected: list[int] = []
    parallel = TensorParallel(0, 2, room=cast(RankRoom, None))
    vocabulary = SharedVocabulary(parallel, (1700, VOCABULARY - 1700)) if has_parts else None
    num_ids = VOCABULARY if vocabulary is None else vocabulary.num_ids

    def project(hidden_nD: torch.Tensor) -> torch.Tensor:
        projected.append(len(hidden_nD))
        return torch.zeros(len(hidden_nD), num_ids)

    trial = make_trial(Watched(), vocabulary, project)
    step = ForwardOutput(logits_NV=output().logits_NV[:, :num_ids].contiguous(), hidden_TD=torch.zeros(600, 8))
    with parallel.at_rest():
        trial.sample(step)
    assert projected == [SLICE_TOKENS]
