"""Finds checkpoints that store the experts of a layer one by one, where the model has one tensor for all of them."""

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

# The tensors of a parameter [experts, A, B]: for each part of A, such as gate and up, those of all experts in order.
Stack: TypeAlias = tuple[tuple[str, ...], ...]


def find_stacks(model: Any, names: Iterable[str]) -> dict[str, Stack]:
    """Return the stacks of a checkpoint with these tensors, by the names of the model's parameters."""
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter) and _stacks(change)]
    parts_of_pattern = {
        pattern: number for change in converters for number, pattern in enumerate(change.source_patterns)
    }
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        parameter, pattern = rename_source_key(name, renamings, converters)
        if pattern is not None:
            found.setdefault(parameter, {}).setdefault(parts_of_pattern[pattern], []).append(name)
    return {
        parameter: tuple(tuple(sorted(parts[number], key=_natural)) for number in sorted(parts))
        for parameter, parts in found.items()
    }


def _stacks(change: WeightConverter) -> bool:
    """Whether a conversion lays experts on one another, and then parts behind one another, and does nothing else."""
    kinds = [type(operation) for operation in change.operations]
    dims = [operation.dim for operation in change.operations if isinstance(operation, MergeModulelist | Concatenate)]
    is_known = (kinds, dims) in (([MergeModulelist], [0]), ([MergeModulelist, Concatenate], [0, 1]))
    return is_known and len(change.target_patterns) == 1


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which the tenth expert comes after the ninth."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]
