"""Reads the scales of keys and values that a checkpoint brings, for `--kv-cache-dtype` with 8 bits.

A tensor belongs to the attention layer that its name leads to: `self_attn.k_scale`, `self_attn.attn.k_scale` and
`self_attn.k_proj.k_scale` are ways in which tools have written the scale of the keys. The tensor has one number, or one
for each key/value head of the whole model, and a stored number times its scale is the key or value.
"""

# K local key/value heads

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from textmill_shard.attention.seam import paged_layers
from textmill_shard.distributed.index_ranges import Heads
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.model_files import WeightFiles
from textmill_shard.loader.scale_names import BOTH, KEYS, OF_OTHERS, VALUES, ZERO_POINTS, is_attention_scale
from textmill_shard.loader.stored_form import kv_cache_scheme
from textmill_shard.loader.tensor_files import open_tensors
from textmill_shard.loader.weight_reader import stored_by_new_name
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KV_TYPES, KvScales

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScaleSource:
    """Where the scales of a model are stored, and which part of them this rank needs."""

    folder: Path
    config: Any
    files: WeightFiles
    parallel: TensorParallel


_LayerNames: TypeAlias = dict[str, str]  # the tensors of one attention layer, by the last word of their names


def note_unneeded_scales(names: Sequence[str], why: str) -> None:
    """Log scales that nothing reads, so that nobody takes them for used."""
    if names:
        log.info(
            "scales of keys and values in the checkpoint are not needed",
            extra={"reason": why, "num_tensors": len(names), "first": min(names)},
        )


def read_kv_scales(
    model: nn.Module, source: ScaleSource, specs: Sequence[LayerKvSpec], *, kv_type: str, device: torch.device
) -> dict[int, KvScales]:
    """Return the scales that the checkpoint has, by the index of the attention layer, for this rank's heads.

    The log says which scales are not used. Raises ModelFilesError that names a tensor which is no scale.
    """
    names = [name for name in source.files.file_of_tensor if is_attention_scale(name)]
    names = sorted(set(names) - set(model.state_dict()))
    scheme = kv_cache_scheme(source.config)
    if kv_type not in KV_TYPES:
        note_unneeded_scales(names, "keys and values have the type of the weights, without --kv-cache-dtype fp8_e4m3fn")
        return {}
    reason = _why_not_used(source.config, scheme)
    if names and reason is not None:
        log.warning(
            "the scales of keys and values in the checkpoint are not used, and scales are measured instead",
            extra={"reason": reason, "num_tensors": len(names), "first": names[0]},
        )
        return {}
    of_layer = _by_layer(model, names, source.folder)
    read = {index: _layer_scales(of, specs[index], source, device=device) for index, of in of_layer.items()}
    found = {index: scales for index, scales in read.items() if scales is not None}
    others = [name for name in names if name.rpartition(".")[2] in OF_OTHERS]
    if others:
        log.info(
            "scales of queries and of the weights of attention are not needed: neither is stored in 8 bits",
            extra={"num_tensors": len(others), "first": others[0]},
        )
    if scheme is not None and not found:
        log.warning("kv_cache_scheme of config.json tells of scales, and the checkpoint has none: scales are measured")
    return found


def _why_not_used(config: Any, scheme: Mapping[str, Any] | None) -> str | None:
    if getattr(config.get_text_config(), "kv_lora_rank", None) is not None:
        return "they are of compressed keys and values, which are stored in full here"
    if scheme is None:
        return None
    if scheme.get("type", "float") != "float" or scheme.get("num_bits", 8) != 8:
        return f"kv_cache_scheme says {scheme.get('num_bits')} bits of type {scheme.get('type')}"
    if scheme.get("dynamic"):
        return "kv_cache_scheme says that scales follow the numbers (dynamic)"
    return None


def _by_layer(model: nn.Module, names: Iterable[str], folder: Path) -> dict[int, _LayerNames]:
    """Return the tensors of each attention layer. Raises ModelFilesError for a tensor of no layer, or a second one."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    index_of_path: dict[str, int] = {}
    for path, index in paged_layers(model).items():
        for each in (path, path.removeprefix(prefix), prefix + path):
            index_of_path.setdefault(each, index)
    found: dict[int, _LayerNames] = {}
    for new_name, name in sorted(stored_by_new_name(model, names).items()):
        path, _, leaf = new_name.rpartition(".")
        while path and path not in index_of_path:
            path = path.rpartition(".")[0]
        if not path:
            raise ModelFilesError(
                f"{folder} holds {name}, and the model of config.json has no attention layer of that name: the scale "
                "belongs to another model, or --kv-cache-dtype auto needs none"
            )
        layer = found.setdefault(index_of_path[path], {})
        if leaf in layer:
            raise ModelFilesError(f"{folder} holds {layer[leaf]} and {name}, two scales for one thing")
        layer[leaf] = name
    return found


def _layer_scales(
    names: _LayerNames, spec: LayerKvSpec, source: ScaleSource, *, device: torch.device
) -> KvScales | None:
    for leaf in ZERO_POINTS:
        if leaf in names and _read(names[leaf], source).any():
            raise ModelFilesError(
                f"{source.folder} holds {names[leaf]}: keys and values that were moved before they were scaled are "
                "not read; --kv-cache-dtype auto needs no scales"
            )
    keys, values = (names.get(leaf, names.get(BOTH)) for leaf in (KEYS, VALUES))
    if keys is None and values is None:
        return None
    if keys is None or values is None:
        has, lacks = (keys, VALUES) if keys is not None else (values, KEYS)
        raise ModelFilesError(f"{source.folder} holds {has} and no {lacks} of the same layer")
    keys_K, values_K = (_local_scales(name, spec, source).to(device) for name in (keys, values))
    return KvScales(keys_K=keys_K, values_K=values_K)


def _local_scales(name: str, spec: LayerKvSpec, source: ScaleSource) -> torch.Tensor:
    """Return float32 `[K]`, of a tensor with one number or one for each head of the model. Raises ModelFilesError."""
    stored = _read(name, source)
    num_local, parallel = spec.num_local_kv_heads, source.parallel
    if not stored.is_floating_point():
        raise ModelFilesError(
            f"{source.folder} holds {name} as {_type_name(stored)}, where a scale is a number with a point"
        )
    scales = stored.flatten().float()
    if not bool((scales.isfinite() & (scales > 0)).all()):
        raise ModelFilesError(
            f"{source.folder} holds {name} with the number {_first_odd(scales)}: a scale is above 0 and finite"
        )
    if len(scales) == 1:
        return scales.expand(num_local).contiguous()
    # With fewer heads than ranks, several ranks hold one head.
    is_divided = len(scales) == num_local * parallel.world_size
    is_shared = num_local == 1 and 0 < len(scales) < parallel.world_size and parallel.world_size % len(scales) == 0
    if not is_divided and not is_shared:
        raise ModelFilesError(
            f"{source.folder} holds {name} with the shape {list(stored.shape)}, where one number is wanted, or one for "
            f"each of {num_local * parallel.world_size} key/value heads"
        )
    own = Heads(len(scales), len(scales)).kv_range(parallel)
    return scales[own.start : own.stop].contiguous()


def _read(name: str, source: ScaleSource) -> torch.Tensor:
    with open_tensors(source.files.file_of_tensor[name]) as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor.clone()  # the file may be mapped


def _first_odd(scales: torch.Tensor) -> float:
    return float(scales[~(scales.isfinite() & (scales > 0))][0])


def _type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
