"""A tap between a causal model's decoder and head, which reads hidden states or passes given ones to the head."""

# T = B * n tokens of the last forward, n rows handed in, D width of the hidden states

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class DecoderTap:
    """Replaces the decoder's forward, so that the head runs with all that the model adds to it (scale, softcap)."""

    def __init__(self, decoder: nn.Module) -> None:
        self._forward = decoder.forward
        self._hidden_BnD: torch.Tensor | None = None
        self._given_1nD: torch.Tensor | None = None
        self._output_type: type[Any] | None = None
        decoder.forward = self._call

    def take_hidden(self) -> torch.Tensor:
        """Return the hidden states `[T, D]` of the last forward pass. They can be taken once."""
        assert self._hidden_BnD is not None, "no forward came before"
        hidden_BnD, self._hidden_BnD = self._hidden_BnD, None
        return hidden_BnD.flatten(0, 1)

    @contextmanager
    def given(self, hidden_nD: torch.Tensor) -> Iterator[None]:
        """Within this context, a forward pass of the model skips the decoder and passes these rows to the head."""
        self._given_1nD = hidden_nD.unsqueeze(0)
        try:
            yield
        finally:
            self._given_1nD = None

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._given_1nD is not None:
            assert self._output_type is not None, "no forward came before"
            return self._output_type(last_hidden_state=self._given_1nD)
        output = self._forward(*args, **kwargs)
        self._output_type = type(output)
        self._hidden_BnD = output.last_hidden_state
        return output
