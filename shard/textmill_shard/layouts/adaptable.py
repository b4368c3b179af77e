"""Finds the linear layers that an adapter can change, by what a probe has seen and never by a layer's name."""

from collections.abc import Mapping

from torch import nn

from textmill_shard.layers.parallel_layers import RowParallelLinear, VocabularyParallelHead
from textmill_shard.layouts.layout import FilledModel
from textmill_shard.model.adapter import LinearPart
from textmill_shard.probing.call_observer import CallObserver


def adaptable_linears(filled: FilledModel, calls: CallObserver) -> Mapping[str, LinearPart]:
    """Return the layers that take one row for each token of a text, or for each token whose logits are wanted.

    Experts are called with some of the tokens, so no row of their input tells the request. Routers give more than a
    product. The function is called
    before layers are swapped; later calls return the first finding.
    """
    if filled.adaptable is None:
        lengths = [len(text) for text in filled.texts]
        if filled.tower is not None:
            lengths.append(filled.tower.num_probe_tokens)
        # An encoder reads the first tokens of each text, and the decoder the others.
        widths = set(range(1, max(lengths) + 1)) if filled.decoder_prompt_ids else {1, *lengths}
        filled.adaptable = {
            path: part
            for path, part in filled.linears.items()
            if ".experts." not in f".{path}." and _takes_a_row_per_token(filled, path, calls, widths)
        }
    return filled.adaptable


def _takes_a_row_per_token(filled: FilledModel, path: str, calls: CallObserver, widths: set[int]) -> bool:
    layer = filled.model.get_submodule(path)
    if isinstance(layer, RowParallelLinear | VocabularyParallelHead):
        layer = layer.local
    if isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward:
        return False  # a layer that makes something else of its product, such as a router, which chooses experts
    inputs = calls.inputs_of(layer)
    return inputs is not None and all(tensor.numel() // tensor.shape[-1] in widths for tensor in inputs)
