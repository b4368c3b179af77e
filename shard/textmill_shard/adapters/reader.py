"""Makes of a folder that PEFT wrote the adapter of this rank. All that the folder says is checked before any use."""

# r rank of a module, I inputs and O outputs of a linear layer

import hashlib
import logging
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from textmill_shard.adapters.config_file import CONFIG_NAME, MAX_CONFIG_BYTES, AdapterConfig, read_config
from textmill_shard.adapters.folder import opened_folder
from textmill_shard.adapters.names import Pair, pair_tensors, place_names
from textmill_shard.adapters.patterns import first_fitting
from textmill_shard.adapters.tensors import DTYPES, read_tensors
from textmill_shard.model.adapter import AdapterRefused, AdapterTargets, AdapterWeights, LinearPart, LowRank

log = logging.getLogger(__name__)

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """The bounds that the operator sets."""

    max_rank: int
    max_bytes: int  # of the files
    base_model: str = ""  # name of the model that is served, for a warning


def read_adapter(folder: Path, targets: AdapterTargets, limits: AdapterLimits) -> AdapterWeights:
    """Return the adapter, cut to this rank, with a digest that is equal on all ranks. Raises AdapterRefused."""
    with opened_folder(folder) as opened:
        config = read_config(opened.read(CONFIG_NAME, max_bytes=MAX_CONFIG_BYTES), max_rank=limits.max_rank)
        pairs = pair_tensors(read_tensors(opened, max_bytes=limits.max_bytes))
    placed = place_names([pair.name for pair in pairs], targets)
    if config.ties_weights and targets.has_tied_head and any(path.endswith("lm_head") for path in placed.values()):
        raise AdapterRefused(
            f"{CONFIG_NAME} has ensure_weight_tying = true, and the adapted lm_head is the embedding too: embeddings "
            "cannot be adapted; merge the adapter into the weights of a local folder and serve that folder"
        )
    _warn_of_other_base(config, limits)
    scales = _scales(config, pairs)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    modules: dict[str, LowRank] = {}
    for pair in sorted(pairs, key=lambda pair: placed[pair.name]):
        path = placed[pair.name]
        part = targets.linears[path]
        rank, scale = scales[pair.name]
        _check_pair(pair, part, rank)
        a_rI, b_Or = (_cast(tensor, pair.name, targets.dtype) for tensor in (pair.a_rI, pair.b_Or))
        digest.update(struct.pack("<I", len(path.encode())) + path.encode() + struct.pack("<dQ", scale, rank))
        for tensor in (a_rI, b_Or):
            digest.update(tensor.view(torch.uint8).numpy().data)
        modules[path] = LowRank(
            a_rI=a_rI[:, part.inputs].contiguous(), b_Or=b_Or[part.outputs].contiguous(), scale=scale
        )
    return AdapterWeights(digest=digest.digest(), modules=modules, max_rank=max(rank for rank, _ in scales.values()))


def _scales(config: AdapterConfig, pairs: Sequence[Pair]) -> Mapping[str, tuple[int, float]]:
    """Return rank and scale of each module, by its name in the file."""
    names = [pair.name for pair in pairs]
    rank_keys = first_fitting(list(config.rank_of_pattern), names)
    alpha_keys = first_fitting(list(config.alpha_of_pattern), names)
    found = {}
    for name, rank_key, alpha_key in zip(names, rank_keys, alpha_keys, strict=True):
        rank = config.rank if rank_key is None else config.rank_of_pattern[rank_key]
        alpha = config.alpha if alpha_key is None else config.alpha_of_pattern[alpha_key]
        found[name] = rank, config.scale(rank=rank, alpha=alpha)
    return found


def _check_pair(pair: Pair, part: LinearPart, rank: int) -> None:
    for letter, tensor, wanted in (
        ("A", pair.a_rI, (rank, part.in_features)),
        ("B", pair.b_Or, (part.out_features, rank)),
    ):
        if tensor.dtype not in DTYPES:
            raise AdapterRefused(f"{letter} of {pair.name} has type {tensor.dtype}, wanted F32, F16 or BF16")
        if tuple(tensor.shape) != wanted:
            raise AdapterRefused(
                f"{letter} of {pair.name} has shape {list(tensor.shape)}, wanted {list(wanted)} (the rank of "
                f"{CONFIG_NAME} and the model's layer): the adapter belongs to another model, or its config to another "
                "adapter"
            )


def _cast(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    cast = tensor.to(dtype).contiguous()
    if not bool(torch.isfinite(cast).all()):
        kind = str(dtype).removeprefix("torch.")
        raise AdapterRefused(f"the adapter of {name} holds values that are not finite in {kind}")
    return cast


def _warn_of_other_base(config: AdapterConfig, limits: AdapterLimits) -> None:
    last = config.base_model.rstrip("/").rpartition("/")[2]
    if last and limits.base_model and last != limits.base_model.rstrip("/").rpartition("/")[2]:
        log.warning(
            "the adapter was trained on a model of another name: its shapes fit, and the shapes decide",
            extra={"trained_on": config.base_model, "served": limits.base_model},
        )
