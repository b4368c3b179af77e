"""A probe runs at most once per model, whatever it says."""

import pytest
import torch
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.layout import Once
from torch import nn


def test_the_finding_of_the_first_call_is_given_again() -> None:
    layer, calls = nn.Linear(2, 2), []

    def probe() -> int:
        calls.append(layer(torch.zeros(1, 2)))
        return 7

    once = Once(layer, probe)
    assert calls == []
    (first, seen), (second, seen_again) = once(), once()
    assert (first, second, len(calls)) == (7, 7, 1)
    assert seen is seen_again
    assert seen.called() == [layer]
    layer(torch.ones(1, 2))
    inputs = seen.inputs_of(layer)
    assert inputs is not None
    assert len(inputs) == 1  # nothing is watched any more


def test_a_refusal_is_raised_again_without_another_run() -> None:
    runs = []

    def probe() -> None:
        runs.append(1)
        raise UnsupportedModelError("none of this kind")

    once = Once(nn.Linear(2, 2), probe)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="none of this kind"):
            once()
    assert len(runs) == 1
