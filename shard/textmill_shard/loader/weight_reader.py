"""Fills a model that stands on `meta` with the weights that this rank owns, cast to the model's dtype."""

import logging
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from textmill_shard.distributed.index_plan import Cut, IndexPlan
from textmill_shard.distributed.index_ranges import IndexRange
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.expert_stacks import Stack, find_stacks
from textmill_shard.loader.model_files import WeightFiles
from textmill_shard.loader.scale_names import is_attention_scale
from textmill_shard.loader.stored_form import check_plain
from textmill_shard.loader.tensor_files import open_tensors

log = logging.getLogger(__name__)

MAX_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Matching:
    """Which tensor of the checkpoint fills which parameter or buffer of the model, by name."""

    tensor_of_name: dict[str, str]
    missing: tuple[str, ...]  # names of the model without a tensor
    unexpected: tuple[str, ...]  # tensors without a name in the model
    stacks: Mapping[str, Stack] = field(default_factory=dict)  # which tensors make up a parameter, by its name

    def within(self, names: Container[str]) -> "Matching":
        """Return the matching of a model that has these of the names alone."""
        kept = {name: tensor for name, tensor in self.tensor_of_name.items() if name in names}
        stacks = {name: stack for name, stack in self.stacks.items() if name in names}
        return replace(self, tensor_of_name=kept, stacks=stacks)


def match_names(model: nn.Module, files: WeightFiles) -> Matching:
    """Match names that agree, that differ by the prefix of the base model, or that transformers renames.

    The prefix differs for a checkpoint that was saved without the head, or for a model without the head. Models with a
    tower for images had other names in older releases of transformers.
    """
    found = _match(model, {name: name for name in files.file_of_tensor})
    if not found.missing:
        return found
    renamed = _match(model, stored_by_new_name(model, files.file_of_tensor))
    return renamed if len(renamed.missing) < len(found.missing) else found


def match_stacks(model: nn.Module, files: WeightFiles) -> Matching:
    """Match names as `match_names` does, where the checkpoint stores the experts of a layer one by one."""
    stacks = find_stacks(model, files.file_of_tensor)
    stacks = {name: stack for name, stack in stacks.items() if _is_whole(model, name, stack)}
    used = {tensor for stack in stacks.values() for part in stack for tensor in part}
    stored = stored_by_new_name(model, [name for name in files.file_of_tensor if name not in used])
    found = _match(model, stored)
    missing = tuple(name for name in found.missing if name not in stacks)
    return replace(found, missing=missing, stacks=stacks)


def _is_whole(model: nn.Module, name: str, stack: Stack) -> bool:
    """Whether a parameter of the model gets as many experts as it has, in each part."""
    module_name, _, leaf = name.rpartition(".")
    try:
        parameter = getattr(model.get_submodule(module_name), leaf)
    except AttributeError:  # a tensor that the model has no place for
        return False
    return all(len(part) == parameter.shape[0] for part in stack)


def _match(model: nn.Module, stored_of_name: Mapping[str, str]) -> Matching:
    """Match a model with tensors, whose names in the files `stored_of_name` has by the names to compare."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    available = set(stored_of_name)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    tensor_of_name: dict[str, str] = {}
    missing: list[str] = []
    for name in model.state_dict():
        candidates = [name, name.removeprefix(prefix), prefix + name]
        found = next((candidate for candidate in candidates if candidate in available), None)
        if found is not None:
            tensor_of_name[name] = stored_of_name[found]
        else:
            missing.append(name)
    # Of two tied names any one is enough.
    partners = {**tied, **{source: target for target, source in tied.items()}}
    missing = [name for name in missing if partners.get(name) not in tensor_of_name]
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    temporary = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    used = set(tensor_of_name.values())
    unexpected = [
        stored_of_name[tensor]
        for tensor in sorted(available)
        if stored_of_name[tensor] not in used
        and not any(pattern.search(tensor) for pattern in ignored)
        and tensor not in temporary
        and not is_attention_scale(tensor)  # read, or told, by stored_kv_scales
        and not tensor.endswith("rotary_emb.inv_freq")
    ]
    return Matching(tensor_of_name=tensor_of_name, missing=tuple(missing), unexpected=tuple(unexpected))


def stored_by_new_name(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the names of tensors by the names that transformers gives them today."""
    renamings = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    return {rename_source_key(name, renamings, [])[0]: name for name in names}


def check_matching(matching: Matching, *, folder: Path, must_fit: bool = False) -> None:
    """Raises ModelFilesError that names what is missing, or what is left over and changes what the others mean.

    `must_fit`: nothing may be left over.
    """
    if matching.missing:
        raise ModelFilesError(f"{folder} lacks {_names(matching.missing)}; left over: {_names(matching.unexpected)}")
    check_left_over(matching.unexpected, known=matching.tensor_of_name.values(), folder=folder, must_fit=must_fit)


def check_left_over(names: Sequence[str], *, known: Iterable[str], folder: Path, must_fit: bool = False) -> None:
    """Log the tensors that the model has no place for, or with `must_fit` raise ModelFilesError.

    `known` are the tensors that the model has a place for.

    Raises ModelFilesError where such a tensor stands beside a known one, in the same layer (a scale, zero points, a
    bias), or is named by a known one and a suffix: the layer would compute something else than it was trained for.
    """
    layers = {name.rpartition(".")[0] for name in known}
    layers = {*layers, *known} - {""}
    beside = tuple(name for name in names if name.rpartition(".")[0] in layers)
    if beside:
        raise ModelFilesError(
            f"{folder} holds {_names(beside)} beside weights of the same layer, and the model of config.json has no "
            "place for them: the weights are stored in a form that config.json does not name, or belong to another "
            "model"
        )
    if names and must_fit:
        raise ModelFilesError(
            f"{folder} holds {_names(tuple(names))}, and the model of config.json has no place for them: the tower for "
            "images would compute something else than it was trained for"
        )
    if names:
        log.warning("the checkpoint holds tensors that the model has no place for: %s", _names(tuple(names)))


def read_weights(
    model: nn.Module,
    *,
    files: WeightFiles,
    matching: Matching,
    plan: IndexPlan,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[float], None],
) -> None:
    """Replace each parameter and persistent buffer by the tensor of the files, file by file. Raises ModelError."""
    keep_in_fp32 = _fp32_patterns(model)
    names_by_file: dict[Path, list[str]] = {}
    for name, stored_name in matching.tensor_of_name.items():
        names_by_file.setdefault(files.file_of_tensor[stored_name], []).append(name)
    num_read = 0
    num_wanted = len(matching.tensor_of_name) + len(matching.stacks)
    for path, names in sorted(names_by_file.items()):
        with open_tensors(path) as opened:
            for name in names:
                tensor = _read_part(opened, matching.tensor_of_name[name], plan.cut_of_parameter.get(name))
                check_plain(name, tensor.dtype, _member(model, name).dtype, path=path)
                wanted = tensor.dtype if not tensor.is_floating_point() else dtype
                if any(pattern.search(name) for pattern in keep_in_fp32):
                    wanted = torch.float32
                # Always a copy, because the tensor may lie in the mapped file.
                copied = tensor.to(device=device, dtype=wanted, copy=True).contiguous()
                _put(model, name, copied.zero_() if name in plan.zeroed_parameters else copied, plan)
                num_read += 1
                on_progress(num_read / num_wanted)
    for name, stack in matching.stacks.items():
        tensor = _read_stack(files, stack, list(_member(model, name).shape), plan.cut_of_parameter.get(name))
        _put(model, name, tensor.to(device=device, dtype=dtype).contiguous(), plan)
        num_read += 1
        on_progress(num_read / num_wanted)
    _tie(model, matching)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what transformers left in the precision of the scales, which are numbers of 32 bits in most files."""
    keep_in_fp32 = _fp32_patterns(model)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(pattern.search(name) for pattern in keep_in_fp32):
            parameter.data = parameter.data.to(dtype)


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers that no checkpoint holds (rotary tables) to the device. They were computed with the model."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                assert not buffer.is_meta, name
                module._buffers[name] = buffer.to(device)


def _read_part(opened: Any, tensor: str, cut: Cut | None) -> torch.Tensor:
    """Return the indices of this rank of a tensor, of which no others are read."""
    read: torch.Tensor
    if cut is None:
        read = opened.get_tensor(tensor)
        return read
    stored = opened.get_slice(tensor)
    before = (slice(None),) * cut.dim
    parts = [stored[(*before, slice(run.start, run.stop))] for run in cut.runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=cut.dim)


def _read_stack(files: WeightFiles, stack: Stack, shape: Sequence[int], cut: Cut | None) -> torch.Tensor:
    """Return `[experts, A, B]`: the parts of the stack lie one behind the other in A, and each has all experts."""
    num_parts, height = len(stack), shape[1] // len(stack)
    parts = []
    for number, tensors in enumerate(stack):
        own = None
        if cut is not None and cut.dim == 2:
            own = Cut(1, cut.runs)
        elif cut is not None:
            assert len(cut.runs) == num_parts, (cut, stack)  # a run for each part
            run, start = cut.runs[number], number * height
            own = Cut(0, (IndexRange(run.start - start, run.stop - start),))
        experts = []
        for tensor in tensors:
            with open_tensors(files.file_of_tensor[tensor]) as opened:
                experts.append(_read_part(opened, tensor, own))
        parts.append(torch.stack(experts))
    return torch.cat(parts, dim=1)


def _put(model: nn.Module, name: str, tensor: torch.Tensor, plan: IndexPlan) -> None:
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    cut = plan.cut_of_parameter.get(name)
    wanted = list(_member(model, name).shape)
    if cut is not None:
        wanted[cut.dim] = len(cut)
    if list(tensor.shape) != wanted:
        raise ModelFilesError(f"{name} has shape {list(tensor.shape)} in the files, config.json asks for {wanted}")
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _member(model: nn.Module, name: str) -> torch.Tensor:
    module_name, _, leaf = name.rpartition(".")
    member: torch.Tensor = getattr(model.get_submodule(module_name), leaf)
    return member


def _tie(model: nn.Module, matching: Matching) -> None:
    """Make tied names one tensor. If the checkpoint holds two different tensors, both are kept, as in transformers."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in tied.items():
        has_target, has_source = target in matching.tensor_of_name, source in matching.tensor_of_name
        if has_target and has_source and not torch.equal(_get(model, target), _get(model, source)):
            log.warning("%s and %s should be tied but differ in the checkpoint: both are kept", target, source)
            continue
        kept, other = (source, target) if has_source else (target, source)
        module_name, _, leaf = other.rpartition(".")
        model.get_submodule(module_name)._parameters[leaf] = _get(model, kept)


def _get(model: nn.Module, name: str) -> nn.Parameter:
    module_name, _, leaf = name.rpartition(".")
    parameter = model.get_submodule(module_name)._parameters[leaf]
    assert parameter is not None, name
    return parameter


def _fp32_patterns(model: nn.Module) -> list[re.Pattern[str]]:
    """Return patterns of the modules that transformers keeps in fp32 whatever the dtype is."""
    names = {
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    }
    return [re.compile(rf"(^|\.){re.escape(name)}(\.|$)") for name in sorted(names)]


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    more = len(names) - MAX_NAMES_SHOWN
    return (shown or "nothing") + (f" and {more} more" if more > 0 else "")
