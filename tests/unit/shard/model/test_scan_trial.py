"""The pass over scores runs at the start, once for each kind of batch for which a GPU compiles a kernel."""

from dataclasses import fields

import torch
from textmill_shard.model.scan_trial import compile_scans
from textmill_shard.model.score_changes import FirstPass, ScoreChanges

from tests.fakes.plain_kernels import PlainKernels

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


def test_passes_with_and_without_changes_are_run_beside_draws() -> None:
    """More kinds of passes than these have no kernels of their own (`test_compiled_scans.py`)."""
    kernels = Watched()
    compile_scans(kernels, vocab_size=VOCABULARY, device=torch.device("cpu"))
    found = {(names, num_candidates > 0) for _, names, num_candidates in kernels.passes}
    assert len(found) == len(kernels.passes)  # none is run twice
    scores = frozenset(field.name for field in fields(ScoreChanges)) - {"temperatures"}
    assert found == {
        (names | heat, is_drawn)
        for names in (frozenset[str](), scores)
        for heat, is_drawn in (
            (frozenset[str](), False),
            (frozenset[str](), True),
            (frozenset({"temperatures"}), True),
        )
    }
    assert kernels.num_noises == 1
