"""How the weights of a checkpoint are stored: plain, in a form that transformers turns into plain values, or neither.

`quantization_config` of config.json names the form. FP8 and FP4 with scales become plain values while
transformers reads them, as transformers does by itself on a device without kernels for the form. All other forms need
packages that are no part of this engine.
"""

import copy
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from textmill_shard.errors import ModelFilesError, UnsupportedModelError

# Fields under which configs have said how weights are stored.
_FIELDS = ("quantization_config", "compression_config")
# Values of `quant_method` that transformers reads as plain values.
DEQUANTISED_METHODS = ("fp8", "mxfp8", "mxfp4")
_PACKED_TYPES = (torch.int8, torch.uint8, torch.int32)


class StoredForm(StrEnum):
    """Who can read the weights."""

    PLAIN = "plain"  # as the model has them
    DEQUANTISED = "dequantised"  # by transformers, into plain values


def find_stored_form(config: Any, folder: Path, *, num_ranks: int) -> StoredForm:
    """Raises UnsupportedModelError with advice for a form that cannot be read here, ModelFilesError for no form."""
    said = _said_form(config)
    if said is None:
        return StoredForm.PLAIN
    path = folder / "config.json"
    if not isinstance(said, Mapping):
        raise ModelFilesError(f"{path} has {said!r} as quantization_config, where an object is wanted")
    method = method_of(said)
    if method is None:
        raise ModelFilesError(f"{path} has a quantization_config without the quant_method that says how to read it")
    if _has_plain_weights(method, said):
        return StoredForm.PLAIN
    if method not in DEQUANTISED_METHODS:
        raise UnsupportedModelError(
            f"models quantised by {method} cannot be served ({path}, quantization_config): serve the model that was "
            f"quantised, or one stored as {', '.join(DEQUANTISED_METHODS)} or GGUF"
        )
    if num_ranks > 1:
        raise UnsupportedModelError(f"models stored as {method} cannot be divided among shards yet; use --num-shard 1")
    return StoredForm.DEQUANTISED


def _has_plain_weights(method: str, said: Mapping[str, Any]) -> bool:
    """Whether a config tells of scales of keys and values alone, as llm-compressor writes for such a recipe."""
    sparsity = said.get("sparsity_config") or {}
    is_dense = isinstance(sparsity, Mapping) and sparsity.get("format", "dense") == "dense"
    has_scheme = isinstance(said.get("kv_cache_scheme"), Mapping)
    return method == "compressed-tensors" and has_scheme and is_dense and not said.get("config_groups")


def kv_cache_scheme(config: Any) -> Mapping[str, Any] | None:
    """Return what a `quantization_config` says of keys and values, as compressed-tensors writes it."""
    said = _said_form(config)
    scheme = said.get("kv_cache_scheme") if isinstance(said, Mapping) else None
    return scheme if isinstance(scheme, Mapping) else None


def without_form(config: Any) -> Any:
    """Return a copy of the config that says nothing of a form, so that transformers reads plain weights as they are."""
    plain = copy.deepcopy(config)
    for each in (plain, plain.get_text_config()):
        for field in _FIELDS:
            if hasattr(each, field):
                delattr(each, field)
    return plain


def method_of(said: Mapping[str, Any]) -> str | None:
    """Give the name of the form that a `quantization_config` says."""
    if said.get("load_in_8bit") or said.get("load_in_4bit"):
        return "bitsandbytes"
    method = said.get("quant_method")
    return method if isinstance(method, str) and method else None


def dequantising(config: Any) -> Any:
    """Give a copy of the config that asks transformers for plain values, also on a device with kernels for the form."""
    asking = copy.deepcopy(config)
    asking.quantization_config = {**_said_form(config), "dequantize": True}
    return asking


def check_plain(name: str, stored: torch.dtype, wanted: torch.dtype, *, path: Path) -> None:
    """Raises UnsupportedModelError where a weight that should be a plain number is stored in a packed form."""
    if wanted.is_floating_point and stored in _PACKED_TYPES:
        raise UnsupportedModelError(
            f"{path} holds {name} as {str(stored).removeprefix('torch.')}, and config.json has no quantization_config "
            "that says how to read it: serve the model that was quantised"
        )


def _said_form(config: Any) -> Any:
    for each in (config, config.get_text_config()):
        for field in _FIELDS:
            said = getattr(each, field, None)
            if said is not None:
                return said
    return None
