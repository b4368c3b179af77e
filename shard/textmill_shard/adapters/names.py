"""Which module of the model each tensor of an adapter belongs to."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from textmill_shard.model.adapter import AdapterRefused, AdapterTargets

PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_MERGE = "merge the adapter into the weights of a local folder and serve that folder"
# A part of a tensor's name, with the reason why the tensor is not read. The first that fits counts.
_REFUSED = (
    (re.compile(r"\.lora_embedding_[AB]$"), f"it adapts an embedding; {_MERGE}"),
    (re.compile(r"\.lora_magnitude_vector"), f"it is a magnitude of DoRA; {_MERGE}"),
    (re.compile(r"\.lora_[AB]\.bias$"), f"it is a bias of the adapter (lora_bias); {_MERGE}"),
    (re.compile(r"(^|\.)experts\b"), f"it adapts experts; {_MERGE}"),
    (re.compile(r"\.base_layer\.lora_[AB]\.weight$"), f"it adapts a parameter (target_parameters); {_MERGE}"),
    (
        re.compile(r"(embed\w*|lm_head|wte|shared)(\.base_layer|\.modules_to_save)?\.weight$"),
        "it is a whole layer of the base model; save the adapter with save_embedding_layers=False where the layer was "
        f"not trained, else {_MERGE}",
    ),
    (re.compile(r"\.bias$"), f"it replaces a bias of the base model; {_MERGE}"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of one module, as the file has them."""

    name: str  # path of the module in the model that was trained
    a_rI: torch.Tensor
    b_Or: torch.Tensor


def pair_tensors(tensors: Mapping[str, torch.Tensor]) -> list[Pair]:
    """Return the pairs by sorted names. Raises AdapterRefused for the first tensor that is no part of a pair."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name in sorted(tensors):
        for pattern, reason in _REFUSED:
            if pattern.search(name):
                raise AdapterRefused(f"the tensor {name} cannot be used: {reason}")
        suffix = next((suffix for suffix in (_A, _B) if name.endswith(suffix)), None)
        if suffix is None or not name.startswith(PREFIX):
            raise AdapterRefused(
                f"the tensor {name} cannot be used: wanted {PREFIX}<module>{_A} or {_B}, as PEFT's save_pretrained "
                "names them"
            )
        halves.setdefault(name.removeprefix(PREFIX).removesuffix(suffix), {})[suffix] = tensors[name]
    if not halves:
        raise AdapterRefused("the file holds no tensors")
    for name, half in halves.items():
        missing = [suffix for suffix in (_A, _B) if suffix not in half]
        if missing:
            raise AdapterRefused(f"the tensor {PREFIX}{name}{missing[0]} is missing: A and B come together")
    return [Pair(name=name, a_rI=half[_A], b_Or=half[_B]) for name, half in halves.items()]


def place_names(names: Iterable[str], targets: AdapterTargets) -> dict[str, str]:
    """Return for each name of the file the path of the linear layer that is meant.

    Names are tried as they stand, then with the model's own renamings, then with the part that models of images and
    text put before their decoder. A renaming counts only when it places all names. Raises AdapterRefused with the
    first name that stands for no layer, and the most similar layer.
    """
    wanted = list(names)
    for rename in _renamings(targets):
        placed = {name: _renamed(name, rename) for name in wanted}
        if all(path in targets.linears for path in placed.values()) and len(set(placed.values())) == len(wanted):
            return placed
    lost = next((name for name in wanted if name not in targets.linears), wanted[0])
    if lost in targets.module_names:
        raise AdapterRefused(f"{lost} is no linear layer of which each token takes one product: it cannot be adapted")
    near = difflib.get_close_matches(lost, targets.linears, n=1, cutoff=0.0)
    raise AdapterRefused(f"the model has no layer {lost}; the nearest name is {near[0] if near else 'none'}")


def _renamings(targets: AdapterTargets) -> tuple[tuple[tuple[str, str], ...], ...]:
    return (
        (),
        *targets.renamings,
        ((r"^model\.(?!language_model\.)", "model.language_model."),),
        ((r"^model\.language_model\.", "model."),),
        ((r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head")),
    )


def _renamed(name: str, rename: tuple[tuple[str, str], ...]) -> str:
    """Apply the replacements to the name that the layer's weight has, because renamings are written for weights."""
    full = f"{name}.weight"
    for pattern, replacement in rename:
        full = re.sub(pattern, replacement, full)
    return full.removesuffix(".weight")
