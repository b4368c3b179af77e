"""From a GGUF file's tensors to safetensors and a config: each value is accounted for.

transformers reads the values of the architectures that it imports, and `gguf_import.py` those of the others.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.utils.logging import disable_progress_bar

from textmill_shard.errors import ModelError, ModelFilesError
from textmill_shard.loader.gguf_config import as_windowed, complete_config, end_ids, read_tensors
from textmill_shard.loader.gguf_header import GgufHeader
from textmill_shard.loader.gguf_import import read_settings, read_values
from textmill_shard.loader.gguf_tables import GgufTable, table_of
from textmill_shard.loader.library_errors import as_model_error

MAX_NAMES_SHOWN = 5
# Fields of a config that belong to the file that it was read from.
_OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "transformers_version")


def write_model(header: GgufHeader, folder: Path, *, dtype: torch.dtype) -> None:
    """Write weights, config.json and generation_config.json into the folder.

    Raises ModelFilesError where the model lacks a tensor of the file or the file lacks a tensor of the model, and
    OSError where the folder cannot be written, as on a full disk.
    """
    disable_progress_bar()
    settings = complete_config(_read_settings(header), header)
    with as_model_error(_not_converted(header)):
        config = _make_config(settings)
    table = table_of(header)
    if table is None:
        _check_tensors(header, config, settings)
        values = _read_values(header, config)
    else:
        values = _read_by_table(header, table, config)
    # A model that was read from GGUF refuses to be saved, so its values move into a fresh one of the same config.
    with init_empty_weights(include_buffers=False):
        fresh = AutoModelForCausalLM.from_config(_make_config(as_windowed(settings, header)), dtype=dtype)
    fresh.load_state_dict({name: tensor.to(dtype) for name, tensor in values.items()}, assign=True)
    fresh.tie_weights()
    ends = end_ids(header)
    fresh.generation_config = GenerationConfig(
        bos_token_id=settings["bos_token_id"],
        eos_token_id=ends if len(ends) > 1 else settings["eos_token_id"] if not ends else ends[0],
        pad_token_id=settings["pad_token_id"],
    )
    try:
        fresh.save_pretrained(folder)
    except SafetensorError as error:
        raise _as_os_error(error, folder) from error


def _as_os_error(error: SafetensorError, folder: Path) -> Exception:
    """Return the error of the system that safetensors names by its number, as in "(os error 28)", else the error."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return error if number is None else OSError(int(number[1]), os.strerror(int(number[1])), str(folder))


def _read_settings(header: GgufHeader) -> dict[str, Any]:
    table = table_of(header)
    with as_model_error(_not_converted(header)):
        if table is not None:
            return read_settings(header, table)
        config = AutoConfig.from_pretrained(header.path.parent, gguf_file=header.path.name)
    settings: dict[str, Any] = config.to_dict()
    return {name: value for name, value in settings.items() if name not in _OF_THE_FILE}


def _make_config(settings: dict[str, Any]) -> Any:
    fields = {name: value for name, value in settings.items() if name != "model_type"}
    return AutoConfig.for_model(settings["model_type"], **fields)


def _read_by_table(header: GgufHeader, table: GgufTable, config: Any) -> dict[str, torch.Tensor]:
    with as_model_error(_not_converted(header)):
        values, missing, left_over = read_values(header, table, config)
    _refuse_names(header, "lacks tensors of the model", sorted(missing))
    _refuse_names(header, "holds tensors that the model has no place for", left_over)
    return values


def _read_values(header: GgufHeader, config: Any) -> dict[str, torch.Tensor]:
    with as_model_error(_not_converted(header)):
        model, loading = AutoModelForCausalLM.from_pretrained(
            header.path.parent,
            gguf_file=header.path.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _refuse_names(header, "lacks tensors of the model", sorted(loading["missing_keys"]))
    unexpected = set(loading["unexpected_keys"]) - read_tensors(header)
    _refuse_names(header, "holds tensors that the model has no place for", sorted(unexpected))
    values: dict[str, torch.Tensor] = model.state_dict()
    return values


def _check_tensors(header: GgufHeader, config: Any, settings: dict[str, Any]) -> None:
    """Compare the file's names with those that transformers' older import reads, which drops all others silently."""
    if header.architecture in GGUF_ARCHS:
        return  # the newer import says itself what is left over
    with as_model_error(_not_converted(header)):
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config)
        processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=settings)
        wanted = {_without_weight(name): target for name, target in get_gguf_hf_weights_map(model, processor).items()}
    found = {_without_weight(tensor.name): tensor.name for tensor in header.tensors}
    left_over = {name for key, name in found.items() if key not in wanted} - read_tensors(header)
    _refuse_names(header, "holds tensors that the model has no place for", sorted(left_over))
    filled = {wanted[key] for key in found if key in wanted}
    missing = {name for name in model.state_dict() if name not in filled}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing -= {target for target, source in tied.items() if source in filled}
    # Gate and up of all experts fill one tensor together: each must be there.
    missing |= {key for key in wanted if "_exps" in key and key not in found}
    _refuse_names(header, "lacks tensors of the model", sorted(missing))
    _check_sizes(header, wanted, model)


def _check_sizes(header: GgufHeader, wanted: Mapping[str, str], model: Any) -> None:
    """Compare how many numbers each tensor has; their order is that of the format, and turned while reading."""
    found: Counter[str] = Counter()
    for tensor in header.tensors:
        if _without_weight(tensor.name) in wanted:
            found[wanted[_without_weight(tensor.name)]] += math.prod(tensor.shape)
    values = model.state_dict()
    wrong = sorted(name for name, size in found.items() if name in values and size != values[name].numel())
    if wrong:
        raise ModelFilesError(
            f"{header.path} holds {found[wrong[0]]} numbers for {wrong[0]}, and a model of the sizes that the file "
            f"says has {values[wrong[0]].numel()} ({len(wrong)} tensors in all): fetch it again, or convert it anew"
        )


def _without_weight(name: str) -> str:
    return name.removesuffix(".weight")


def _refuse_names(header: GgufHeader, what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:MAX_NAMES_SHOWN])
        more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
        raise ModelFilesError(
            f"{header.path} {what} ({header.architecture}): {shown}{more}; it is incomplete, or of a kind that is not "
            "read here: fetch it again, or serve the model's safetensors"
        )


def _not_converted(header: GgufHeader) -> Callable[[str], ModelError]:
    return lambda said: ModelFilesError(f"{header.path} cannot be converted ({header.architecture}): {said}")
