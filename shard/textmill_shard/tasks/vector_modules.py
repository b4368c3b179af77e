"""Reads `modules.json` of a sentence-transformers folder: how token vectors become a vector or sparse weights.

Known modules are Transformer, Pooling, Dense, LayerNorm, Normalize and Dropout, and for sparse vectors MLMTransformer
and SpladePooling. A module of another kind would change the vectors, so it ends the start by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.loader.model_files import find_weight_files, read_json, read_json_list
from textmill_shard.loader.tensor_files import open_tensors
from textmill_shard.tasks.pooling import Pooling, PoolingMode

POOLINGS = {
    "cls": Pooling((PoolingMode.CLS,)),
    "mean": Pooling((PoolingMode.MEAN,)),
    "last": Pooling((PoolingMode.LAST,)),
    "max": Pooling((PoolingMode.MAX,)),
}
_TRANSFORMERS = ("Transformer", "MLMTransformer")
_ACTIVATIONS = {
    name: kind
    for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Mish)
    for name in (f"torch.nn.modules.{'linear' if kind is nn.Identity else 'activation'}.{kind.__name__}",)
}


@dataclass(frozen=True, slots=True)
class VectorModules:
    """What follows the transformer."""

    model_dir: Path  # folder of the transformer
    pooling: Pooling | None  # None = vectors are asked for by token only
    after: nn.Sequential  # layers that a pooled vector passes
    is_normalized: bool  # the last module divides a vector by its length
    is_sparse: bool  # the vectors are weights of the vocabulary, by the masked-LM head
    is_max: bool = True  # of sparse vectors: the largest weight over the tokens counts, else their sum


def read_vector_modules(folder: Path, *, asked_pooling: str, allow_pickle: bool) -> VectorModules:
    """Return the modules of a folder.

    Raises ModelFilesError for files that say nothing that can be, UnsupportedModelError for modules that are not known.
    """
    path = folder / "modules.json"
    if not path.is_file():
        pooling = POOLINGS["mean"] if asked_pooling == "auto" else POOLINGS.get(asked_pooling)
        return VectorModules(folder, pooling, nn.Sequential(), is_normalized=True, is_sparse=False)
    pooling = None
    modules = read_json_list(path)
    names = [_kind_of(module, path) for module in modules]
    if not names or names[0] not in _TRANSFORMERS:
        raise UnsupportedModelError(f"{path} begins with {names[:1]}, wanted one of {', '.join(_TRANSFORMERS)}")
    model_dir = folder / _path_of(modules[0], path)
    is_sparse = names[0] == "MLMTransformer"
    is_max = True
    layers: list[nn.Module] = []
    is_normalized = False
    for module, name in zip(modules[1:], names[1:], strict=True):
        part = folder / _path_of(module, path)
        if name == "Dropout":
            continue
        if is_normalized:
            raise UnsupportedModelError(f"{path} has {name} behind Normalize, which is not known here")
        if name == "SpladePooling" and is_sparse:
            is_max = _is_splade_max(part)
        elif name == "Pooling" and not is_sparse and pooling is None:
            pooling = _read_pooling(part)
        elif name == "Normalize" and pooling is not None:
            is_normalized = True
        elif name in ("Dense", "LayerNorm") and pooling is not None:
            layers += _read_dense(part, allow_pickle) if name == "Dense" else [_read_layer_norm(part, allow_pickle)]
        else:
            raise UnsupportedModelError(
                f"{path} has a module {name} at its place {len(layers) + 1}: it is not known here"
            )
    if not is_sparse:
        if pooling is None:
            raise UnsupportedModelError(f"{path} has no Pooling")
        if asked_pooling != "auto":
            pooling = POOLINGS.get(asked_pooling)
    return VectorModules(
        model_dir,
        pooling,
        nn.Sequential(*layers).eval(),
        is_normalized=is_normalized,
        is_sparse=is_sparse,
        is_max=is_max,
    )


def _kind_of(module: Any, path: Path) -> str:
    kind = module.get("type") if isinstance(module, dict) else None
    if not isinstance(kind, str):
        raise ModelFilesError(f"{path} has {module!r}, where a module with its type is wanted")
    return kind.rpartition(".")[2]


def _path_of(module: Mapping[str, Any], path: Path) -> str:
    found = module.get("path", "")
    if not isinstance(found, str) or Path(found).is_absolute() or ".." in Path(found).parts:
        raise ModelFilesError(f"{path} has {found!r} as the path of a module: no folder below {path.parent}")
    return found


def _read_pooling(folder: Path) -> Pooling:
    path = folder / "config.json"
    config = read_json(path)
    chosen = config.get("pooling_mode")
    known = {mode.value: mode for mode in PoolingMode}
    short = {"cls": PoolingMode.CLS, "max": PoolingMode.MAX, "mean": PoolingMode.MEAN, "lasttoken": PoolingMode.LAST}
    short |= {"mean_sqrt_len": PoolingMode.MEAN_BY_ROOT, "weightedmean": PoolingMode.WEIGHTED_MEAN}
    if isinstance(chosen, str):
        modes = [short[chosen]] if chosen in short else []
    else:
        named = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True and "mode_" in key]
        unknown = [name for name in named if name not in known]
        if unknown:
            raise UnsupportedModelError(f"{path} pools by {unknown[0]}, known are {', '.join(known)}")
        # The order of sentence-transformers, whatever the order of the file.
        modes = [mode for mode in PoolingMode if mode.value in named]
    if not modes:
        raise ModelFilesError(f"{path} names no way of pooling: {chosen!r}")
    return Pooling(tuple(modes), includes_prompt=config.get("include_prompt", True) is not False)


def _is_splade_max(folder: Path) -> bool:
    path = folder / "config.json"
    config = read_json(path)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation != "relu":
        raise UnsupportedModelError(f"{path} pools by {strategy} of {activation}, known are max and sum of relu")
    return bool(strategy == "max")


def _read_dense(folder: Path, allow_pickle: bool) -> list[nn.Module]:
    path = folder / "config.json"
    config = read_json(path)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{path} has the activation {activation}, known are {', '.join(_ACTIVATIONS)}")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedModelError(f"{path} has {config[key]!r} as {key}, known is sentence_embedding")
    num_inputs, num_outputs = (read_size(config, key, path) for key in ("in_features", "out_features"))
    linear = nn.Linear(num_inputs, num_outputs, bias=config.get("bias", True) is not False)
    _fill(linear, folder, prefix="linear.", allow_pickle=allow_pickle)
    return [linear, _ACTIVATIONS[activation]()]


def read_size(config: Mapping[str, Any], key: str, path: Path) -> int:
    """Return a width. Raises ModelFilesError for anything but a whole number above 0."""
    size = config.get(key)
    if not isinstance(size, int) or size < 1:
        raise ModelFilesError(f"{path} has {size!r} as {key}, where a whole number above 0 is wanted")
    return size


def _read_layer_norm(folder: Path, allow_pickle: bool) -> nn.Module:
    path = folder / "config.json"
    norm = nn.LayerNorm(read_size(read_json(path), "dimension", path))
    _fill(norm, folder, prefix="norm.", allow_pickle=allow_pickle)
    return norm


def _fill(layer: nn.Module, folder: Path, *, prefix: str, allow_pickle: bool) -> None:
    """Fill a layer from the folder's own file of weights, in float32. Raises ModelFilesError."""
    files = find_weight_files(folder, allow_pickle=allow_pickle)
    stored = {prefix + name: parameter for name, parameter in layer.named_parameters()}
    if set(files.file_of_tensor) != set(stored):
        raise ModelFilesError(f"{folder} holds {sorted(files.file_of_tensor)}, wanted {sorted(stored)}")
    for name, parameter in stored.items():
        with open_tensors(files.file_of_tensor[name]) as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        if tensor.shape != parameter.shape:
            raise ModelFilesError(
                f"{folder} holds {name} of shape {list(tensor.shape)}, config.json asks for {list(parameter.shape)}"
            )
        parameter.data = tensor.float().clone()
        parameter.requires_grad = False
