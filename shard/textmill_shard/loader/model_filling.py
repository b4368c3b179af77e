"""Makes of a config a model with this rank's weights. The model is built on `meta` and filled by an index plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.logging import disable_progress_bar

from textmill_shard.distributed.division_rules import Role
from textmill_shard.distributed.index_plan import IndexPlan, build_index_plan
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.layers.experts import loop_where_torch_refuses
from textmill_shard.layers.parallel_layers import LocalNumbers, add_up_outputs, divide_layer
from textmill_shard.layouts.image_families import ImageFamily
from textmill_shard.layouts.image_tower import leave_out, tower_parts
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.linears import find_linears
from textmill_shard.loader.model_files import WeightFiles
from textmill_shard.loader.scale_names import is_attention_scale
from textmill_shard.loader.stored_form import StoredForm, dequantising, without_form
from textmill_shard.loader.stored_kv_scales import note_unneeded_scales
from textmill_shard.loader.weight_reader import (
    cast_weights,
    check_left_over,
    check_matching,
    match_names,
    match_stacks,
    move_buffers,
    read_weights,
)
from textmill_shard.model.adapter import LinearPart

_KINDS: Mapping[Any, str] = {AutoModelForSeq2SeqLM: "text-to-text", AutoModelForCausalLM: "causal"}
# Scales of the numbers between the layers: whoever computes with plain weights needs none of them.
_SCALES_OF_ACTIVATIONS = (".input_scale", ".activation_scale")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The files and options from which a model is made, any number of times."""

    folder: Path
    config: Any  # as transformers read it
    files: WeightFiles
    form: StoredForm
    dtype: torch.dtype
    device: torch.device
    parallel: TensorParallel
    trust_remote_code: bool
    auto_class: Any  # the class of transformers that builds the model, an AutoModel
    class_options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the class
    family: ImageFamily | None = None  # of a model whose images are served
    text_only: bool = False
    stores_keys: bool = False  # whether keys and values are stored, so that their scales are read once layers are known
    wants_tower: bool = True  # whether this rank encodes images; False: the weights of the tower are not read


def build_model(source: ModelSource) -> Any:
    """Return the model in eval mode, with its parameters on `meta`. Raises UnsupportedModelError."""
    config = source.config
    # Parameters stand on `meta`. Buffers are computed, because no checkpoint holds the rotary tables.
    with (
        as_model_error(lambda said: UnsupportedModelError(_why_not_built(source, said))),
        init_empty_weights(include_buffers=False),
    ):
        model = source.auto_class.from_config(
            config, dtype=torch.float32, trust_remote_code=source.trust_remote_code, **source.class_options
        )
    return model.eval()


@dataclass(frozen=True, slots=True)
class Filling:
    """A model with its weights on the device."""

    model: Any
    linears: dict[str, LinearPart]  # all linear layers, by their paths
    num_divided_layers: int  # layers that are divided among the ranks


def fill_model(model: Any, source: ModelSource, on_progress: Callable[[float], None]) -> Filling:
    """Return the model with its weights on the device. Raises ModelFilesError."""
    filling = _fill(model, source, on_progress)
    loop_where_torch_refuses(filling.model)
    return filling


def _fill(model: Any, source: ModelSource, on_progress: Callable[[float], None]) -> Filling:
    if not source.stores_keys:
        scales = [name for name in source.files.file_of_tensor if is_attention_scale(name)]
        note_unneeded_scales(scales, "no keys and values are stored")
    if source.form is StoredForm.DEQUANTISED:
        return _whole(_fill_by_transformers(source))
    matching = match_names(model, source.files)
    if matching.missing and source.parallel.world_size == 1:
        return _whole(_fill_by_transformers(source))
    if matching.missing:
        matching = match_stacks(model, source.files)
    check_matching(matching, folder=source.folder, must_fit=source.family is not None)
    tower = () if source.family is None else tower_parts(model)
    if not source.wants_tower:
        leave_out(model, tower)
        matching = matching.within(model.state_dict())
    plan = build_index_plan(model, source.config, source.parallel, whole=tower)
    read_weights(
        model,
        files=source.files,
        matching=matching,
        plan=plan,
        dtype=source.dtype,
        device=source.device,
        on_progress=on_progress,
    )
    move_buffers(model, source.device)
    linears = find_linears(model, plan)
    _divide(model, plan, source.parallel)
    return Filling(model=model, linears=linears, num_divided_layers=len(plan.role_of_module))


def _whole(model: Any) -> Filling:
    return Filling(model=model, linears=find_linears(model, IndexPlan()), num_divided_layers=0)


def _why_not_built(source: ModelSource, said: str) -> str:
    config = source.config
    if "Unrecognized configuration class" in said:
        kind = _KINDS.get(source.auto_class)
        if kind is None:
            return f"models of type {config.model_type} have no class among those of {source.auto_class.__name__}"
        return f"models of type {config.model_type} do not generate text: transformers has no {kind} model of that kind"
    return f"a model of type {config.model_type} cannot be built from its config.json: {said}"


def _fill_by_transformers(source: ModelSource) -> Any:
    """Return a model that transformers fills, because names, shapes or values of the checkpoint must be converted.

    Such checkpoints store experts one by one, or weights with scales. Raises ModelFilesError.
    """
    disable_progress_bar()
    is_dequantised = source.form is StoredForm.DEQUANTISED
    with as_model_error(lambda said: ModelFilesError(f"{source.folder} cannot be read: {said}")):
        model, loading = source.auto_class.from_pretrained(
            source.folder,
            config=dequantising(source.config) if is_dequantised else without_form(source.config),
            dtype=source.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            use_safetensors=not source.files.are_pickled,
            weights_only=True,
            trust_remote_code=source.trust_remote_code,
            **source.class_options,
        )
    for name, stored, wanted in sorted(loading["mismatched_keys"]):
        raise ModelFilesError(f"{name} has shape {list(stored)} in the files, config.json asks for {list(wanted)}")
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelFilesError(f"{source.folder} lacks {len(missing)} tensors of the model, first {missing[0]}")
    left_over = sorted(name for name in loading["unexpected_keys"] if not is_attention_scale(name))
    if is_dequantised:
        left_over = [name for name in left_over if not name.endswith(_SCALES_OF_ACTIVATIONS)]
    must_fit = source.family is not None
    check_left_over(left_over, known=model.state_dict(), folder=source.folder, must_fit=must_fit)
    if is_dequantised:
        cast_weights(model, source.dtype)
    if source.family is not None and not source.wants_tower:
        leave_out(model, tower_parts(model))
    return model.eval().to(source.device)


def _divide(model: nn.Module, plan: IndexPlan, parallel: TensorParallel) -> None:
    for name, role in plan.role_of_module.items():
        if role is Role.SUM:
            add_up_outputs(model.get_submodule(name), parallel)
            continue
        parent_name, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = divide_layer(
            model.get_submodule(name),
            role=role,
            indices=plan.cut_of_parameter[f"{name}.weight"].runs[0],
            parallel=parallel,
            vocabulary_sizes=plan.sizes_of_vocabulary,
        )
        setattr(parent, leaf, layer)
    for count in plan.counts:
        owner: Any = model.get_submodule(count.module)
        if count.name.startswith("config."):
            if not isinstance(owner.config, LocalNumbers):
                owner.config = LocalNumbers(owner.config)
            owner = owner.config
        setattr(owner, count.name.rpartition(".")[2], count.value)
