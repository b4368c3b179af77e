"""The scan of Mamba layers, begun in the state that the first half of a text leaves."""

# B sequences, I channels, N width of the state, n tokens

from typing import Any, cast

import pytest
import torch
from textmill_shard.layouts.selective_scan import StateScans
from textmill_shard.layouts.state_cache import StateCache
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

NUM_ROWS, CHANNELS, WIDTH, LENGTH, CUT = 2, 6, 4, 9, 5
TRANSFORMERS_SCAN = modeling_mamba.mamba_selective_scan


class Kept:
    """The part of a cache that a scan reads."""

    def __init__(self, last_recurrent: torch.Tensor | None) -> None:
        self.last_recurrent = last_recurrent


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> StateScans:
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", TRANSFORMERS_SCAN)
    config = MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=WIDTH)
    return StateScans(MambaForCausalLM(config))


def inputs() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(4)
    by_token = {"hidden_states": CHANNELS, "dt": CHANNELS, "B": WIDTH, "C": WIDTH, "z": CHANNELS}
    tokens = {name: torch.randn(NUM_ROWS, width, LENGTH, generator=random) for name, width in by_token.items()}
    fixed = {"A": -torch.rand(CHANNELS, WIDTH, generator=random), "D": torch.randn(CHANNELS, generator=random)}
    return {**tokens, **fixed, "delta_bias": torch.randn(CHANNELS, generator=random)}


def scan(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the modelling code calls; gives `[B, I, n]` and the last state `[B, I, N]`."""
    given = {name: x[..., start:stop] if x.dim() == 3 else x for name, x in inputs().items()}
    result: Any = modeling_mamba.mamba_selective_scan(**given, delta_softplus=True, return_last_state=True)
    return result


def test_a_text_in_two_halves_gives_the_whole(scans: StateScans) -> None:
    whole: Any = inputs()
    expected_out, expected_last = TRANSFORMERS_SCAN(**whole, delta_softplus=True, return_last_state=True)
    first, state = scan(0, CUT)
    with scans.running(cast(StateCache, Kept(state))):
        second, last = scan(CUT, LENGTH)
    torch.testing.assert_close(torch.cat([first, second], dim=-1), expected_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, expected_last, rtol=1e-4, atol=1e-5)


def test_nothing_is_carried_on_outside(scans: StateScans) -> None:
    _, state = scan(0, CUT)
    with scans.running(cast(StateCache, Kept(state))):
        pass
    alone, _ = scan(CUT, LENGTH)
    with pytest.raises(KeyError), scans.running(cast(StateCache, Kept(state))):
        raise KeyError
    assert torch.equal(scan(CUT, LENGTH)[0], alone)
    given = {name: x[..., CUT:] if x.dim() == 3 else x for name, x in inputs().items()}
    expected, _ = TRANSFORMERS_SCAN(**given, delta_softplus=True, return_last_state=True)
    assert torch.equal(alone, expected)


def test_a_second_model_of_a_type_finds_the_scan_replaced(scans: StateScans) -> None:
    replaced = modeling_mamba.mamba_selective_scan
    assert replaced is not TRANSFORMERS_SCAN
    StateScans(MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=WIDTH)))
    assert modeling_mamba.mamba_selective_scan is replaced
