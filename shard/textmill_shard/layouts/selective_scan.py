"""Lets the scan of Mamba layers begin in a state, because transformers' own scan begins each chunk with an empty past.

The scan is found by its name in the modelling code of the layers. transformers' kernels replace the scan by that name
too.
"""

# B sequences, I channels, N width of the state, n tokens

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from textmill_shard.layouts.state_cache import StateCache

_SCAN = "mamba_selective_scan"


class StateScans:
    """The scans of a model's code, which can begin in a state. The code of one model type has one scan."""

    def __init__(self, model: nn.Module) -> None:
        """Replace the functions in the modelling code. Outside of `running` they compute as before."""
        self._scans = [_replace_scan(code) for code in _modules_with_scan(model)]

    @contextmanager
    def running(self, cache: StateCache) -> Iterator[None]:
        """Within this context, scans begin in the state that the cache has returned to the layer.

        Only one thread may enter at a time.
        """
        for scan in self._scans:
            scan.cache = cache
        try:
            yield
        finally:
            for scan in self._scans:
                scan.cache = None


class _ScanFromState:
    """Adds the part of the past to a scan. The scan is linear in its state, so that the past decays by itself."""

    def __init__(self, scan: Any) -> None:
        self.cache: StateCache | None = None  # cache of the sub-batch under way; None: begin with an empty past
        self._scan = scan

    def __call__(
        self,
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
        delta_bias: torch.Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the scan. `hidden_states`, `dt` and `z` are `[B, I, n]`, `A` is `[I, N]`, `B` and `C` are `[B, N, n]`."""
        given = self._scan(
            hidden_states,
            dt,
            A,
            B,
            C,
            D=D,
            z=z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            return_last_state=return_last_state,
            **kwargs,
        )
        if self.cache is None or self.cache.last_recurrent is None or not return_last_state:
            return given
        out_BIn, last_BIN = given
        before_BIN = self.cache.last_recurrent.float()
        steps_BIn = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None]
        steps_BIn = functional.softplus(steps_BIn) if delta_softplus else steps_BIn
        # The exponents are negative, so that the factors lie between 0 and 1.
        decay_BInN = torch.exp(steps_BIn.float().cumsum(-1)[..., None] * A[None, :, None, :])
        past_BInN = decay_BInN * before_BIN[:, :, None, :]
        added_BIn = torch.einsum("bisn,bns->bis", past_BInN, C.float())
        if z is not None:
            added_BIn = added_BIn * functional.silu(z.float())
        return out_BIn + added_BIn.to(out_BIn.dtype), last_BIN + past_BInN[:, :, -1].to(last_BIN.dtype)


def _modules_with_scan(model: nn.Module) -> list[Any]:
    names = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), _SCAN)]


def _replace_scan(code: Any) -> _ScanFromState:
    """Return the replaced scan of the code. Models of one type share their code and therefore the scan."""
    scan = getattr(code, _SCAN)
    if not isinstance(scan, _ScanFromState):
        scan = _ScanFromState(scan)
        setattr(code, _SCAN, scan)
    return scan
