"""Puts the rows of images among the embeddings of a flat step, and adds the rows of the first decoder layers."""

# T tokens of the step, D width of the embeddings, m tokens that take a row

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from textmill_shard.model.forward_batch import MediaStep


class MediaInputs:
    """The embedding and the decoder layers of a model that takes images."""

    def __init__(self, embedding: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._embedding = embedding
        self._layers = layers

    @staticmethod
    def of(model: Any) -> "MediaInputs":
        """Return the parts of an outer model of transformers."""
        return MediaInputs(model.get_input_embeddings(), model.get_decoder().layers)

    def embed(self, input_ids_T: torch.Tensor, media: MediaStep) -> torch.Tensor:
        """Return the embeddings `[1, T, D]`. The ids of placeholders are not looked up, because some have no row."""
        embedded_TD: torch.Tensor = self._embedding(input_ids_T.index_fill(0, media.places_m, 0))
        return embedded_TD.index_copy(0, media.places_m, media.rows_mD.to(embedded_TD.dtype)).unsqueeze(0)

    @contextmanager
    def added(self, media: MediaStep) -> Iterator[None]:
        """Within this context, the outputs of the first decoder layers get the step's rows for them."""
        rows_of_layers = () if media.deepstack_kmD is None else media.deepstack_kmD.unbind()
        handles = [
            layer.register_forward_hook(_adder(media.places_m, rows_mD))
            for layer, rows_mD in zip(self._layers, rows_of_layers, strict=False)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adder(places_m: torch.Tensor, rows_mD: torch.Tensor) -> Any:
    def add(layer: nn.Module, arguments: Any, hidden_1TD: torch.Tensor) -> torch.Tensor:
        # A new tensor, because a layer of a GPU hands the norm of the old one on (layers/device_layers.py).
        return hidden_1TD.index_add(1, places_m, rows_mD.to(hidden_1TD.dtype).unsqueeze(0))

    return add
