"""What the files of adapters may name in a model: linear layers, and the names that checkpoints have for them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.conversion_mapping import extract_weight_conversions_for_model
from transformers.core_model_loading import WeightRenaming

from textmill_shard.model.adapter import AdapterTargets, LinearPart


def find_targets(model: Any, linears: Mapping[str, LinearPart], *, dtype: torch.dtype) -> AdapterTargets:
    """Return the targets of a loaded model."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return AdapterTargets(
        linears=linears,
        module_names=frozenset(path for path, _ in model.named_modules()),
        renamings=tuple(_renamings(model)),
        dtype=dtype,
        has_tied_head=any("lm_head" in name for pair in tied.items() for name in pair),
    )


def _renamings(model: Any) -> Iterable[tuple[tuple[str, str], ...]]:
    """Yield the renamings that transformers applies to older checkpoints of the model, each as a list in order."""
    own = getattr(model, "_checkpoint_conversion_mapping", None)
    if isinstance(own, Mapping) and own:
        yield tuple(own.items())
    renames = [
        (change.source_patterns[0], change.target_patterns[0])
        for change in extract_weight_conversions_for_model(model) or ()
        if type(change) is WeightRenaming and len(change.source_patterns) == len(change.target_patterns) == 1
    ]
    if renames:
        yield tuple(renames)
