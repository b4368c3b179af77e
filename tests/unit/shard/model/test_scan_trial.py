"""The pass over scores runs at the start: in the largest step for its memory, and once for each usual kind of batch."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.memory import KvMemoryOptions, plan_kv_memory
from textmill_shard.model.scan_trial import CHANGES, compile_scans, scan_everything
from textmill_shard.model.score_changes import FirstPass, ScoreChanges

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.tiny_models import make_tiny_llama

VOCABULARY = 50


class Watched(PlainKernels):
    """Notes the rows, the changes and the number of candidates of each pass, and the number of noises."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, frozenset[str], int]] = []
        self.num_noises = 0

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        names = frozenset(field.name for field in fields(changes) if getattr(changes, field.name) is not None)
        self.passes.append((len(logits_NV), names, num_candidates))
        return super().first_pass(logits_NV, changes, num_candidates)

    def gumbel(self, *given: torch.Tensor) -> torch.Tensor:
        self.num_noises += 1
        return super().gumbel(*given)


def test_a_pass_of_everything_changes_no_score() -> None:
    kernels, logits_NV = Watched(), torch.randn(3, VOCABULARY)
    first = scan_everything(kernels, logits_NV)
    assert kernels.passes == [(3, frozenset(CHANGES), VOCABULARY)]
    assert torch.equal(first.scores_NV, logits_NV)
    assert first.candidates_NC is not None
    assert first.tempered_mass_N is not None


def test_each_change_is_run_alone_and_beside_draws() -> None:
    kernels = Watched()
    compile_scans(kernels, vocab_size=VOCABULARY, device=torch.device("cpu"))
    found = {(names, num_candidates > 0) for _, names, num_candidates in kernels.passes}
    assert len(found) == len(kernels.passes)  # none is run twice
    scores = frozenset(CHANGES) - {"temperatures"}
    for names in (frozenset[str](), *(frozenset({name}) for name in scores), scores):
        assert {(names, False), (names, True), (names | {"temperatures"}, True)} <= found
    assert kernels.num_noises == 1


def test_the_largest_step_scans_the_rows_of_all_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Watched()
    load_by(monkeypatch, kernels)
    options = LoadOptions(model_dir=make_tiny_llama(tmp_path), dtype="float32", block_size=4)
    runner = load_model(options, lambda phase, share: None)
    kernels.passes.clear()
    limits = KvMemoryOptions(max_step_tokens=64, num_slots=4, kv_cache_bytes=10 * runner.kv_bytes_per_block())
    plan_kv_memory(runner, limits)
    num_rows, names, num_candidates = kernels.passes[-1]  # behind those that are compiled
    assert len(kernels.passes) > 1
    assert names == frozenset(CHANGES)
    assert num_candidates == runner.facts.vocab_size
    assert num_rows == 1  # on a CPU, where the memory of further rows is added by their number
