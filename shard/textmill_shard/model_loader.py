"""From a model folder to a runner: config, model on `meta`, index plan, this rank's runs of bytes, probe, check."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from textmill_shard.attention.base import AttentionBackend
from textmill_shard.attention.cpu import CpuAttention
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.attention.seam import PAGED_ATTENTION, PagedLayer, StepContext, attach_layer, register_attention
from textmill_shard.decoder_tap import DecoderTap
from textmill_shard.fast_decoder import FastDecoder, why_not_fast
from textmill_shard.heap import trim_heap
from textmill_shard.index_plan import IndexPlan, build_index_plan
from textmill_shard.model_errors import ModelError, ModelFilesError, UnsupportedModelError
from textmill_shard.model_files import WeightFiles, find_eos_token_ids, find_tokenizer_digest, find_weight_files
from textmill_shard.model_runner import ModelFacts, ModelRunner, StepDecoder
from textmill_shard.native.kernels import DTYPES as NATIVE_DTYPES
from textmill_shard.native.kernels import Kernels, load_kernels
from textmill_shard.parallel import TensorParallel
from textmill_shard.parallel_layers import divide_layer
from textmill_shard.probe import ProbeResult, probe_model
from textmill_shard.rope_tables import (
    choose_long_tables_by_token,
    find_rope_border,
    fix_dynamic_tables,
    longest_dynamic_total,
)
from textmill_shard.start_check import PROBE_TEXTS, can_project, check_against_probe
from textmill_shard.state_decoder import StateDecoder
from textmill_shard.state_rows import StateRows, carries_state
from textmill_shard.transformers_decoder import TransformersDecoder
from textmill_shard.weight_reader import check_matching, match_names, move_buffers, read_weights

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
# Names under which configs keep the longest sequence that the positions allow.
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")

OnProgress = Callable[[str, float], None]  # phase ("config", "weights", "warmup"), 0 .. 1 of it


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What to load and how."""

    model_dir: Path
    dtype: str = "auto"  # "auto" or one of DTYPES
    device: str = "cpu"  # "cpu", "cuda", "cuda:1"
    block_size: int = 16  # tokens per block
    native_cache_dir: Path | None = None  # where compiled kernels are kept; None = plain torch only
    num_threads: int = 1  # of the native kernels
    num_slots: int = 8  # requests that can run at once: layers with a state keep a row for each
    fast_decoder: bool = True  # a native call per step for llama-type models; needs the native kernels


class _FastDecoderDiffers(Exception):
    """The native decoder does not compute what the model computes; its weights are gone by then."""


def load_model(options: LoadOptions, on_progress: OnProgress, parallel: TensorParallel | None = None) -> ModelRunner:
    """Give a runner that still needs `allocate_kv`. Raises ModelError with a sentence for the operator."""
    parallel = parallel or TensorParallel()
    try:
        return _load(options, on_progress, parallel)
    except _FastDecoderDiffers as difference:
        log.warning("the native decoder does not fit: loading again without it", extra={"reason": str(difference)})
        return _load(replace(options, fast_decoder=False), on_progress, parallel)


def _load(options: LoadOptions, on_progress: OnProgress, parallel: TensorParallel) -> ModelRunner:
    started = time.monotonic()
    on_progress("config", 0.0)
    config = _read_config(options.model_dir)
    device = torch.device(options.device)
    dtype: torch.dtype = getattr(torch, pick_dtype(options.dtype, config=config, device=device))
    files = find_weight_files(options.model_dir)
    if parallel.world_size > 1 and carries_state(config):
        raise UnsupportedModelError(
            f"models of type {config.model_type} have layers that carry state from token to token and cannot be "
            "divided among shards yet; use --num-shard 1"
        )

    on_progress("weights", 0.0)
    model, plan = _build_and_fill(
        config=config,
        files=files,
        options=options,
        dtype=dtype,
        device=device,
        parallel=parallel,
        on_progress=lambda share: on_progress("weights", share),
    )

    on_progress("warmup", 0.0)
    max_tokens = longest_dynamic_total(config) or _max_model_tokens(config)
    fix_dynamic_tables(model, max_tokens=max_tokens)
    rope_border = find_rope_border(config)
    vocab_size = int(config.get_text_config().vocab_size)
    probe_texts = tuple(torch.tensor(text, device=device) % vocab_size for text in PROBE_TEXTS)
    probe = probe_model(model, texts=probe_texts, max_tokens=max_tokens)
    kernels = _load_kernels(options, dtype=dtype, device=device)
    reason = _why_not_fast(model, probe, options=options, kernels=kernels, parallel=parallel, rope_border=rope_border)
    decoder: StepDecoder
    layout, state_bytes = "flat", 0
    if kernels is not None and reason is None:
        decoder = fast = FastDecoder(model, [layer.rule for layer in probe.layers], kernels)
        weight_bytes = fast.num_bytes
    else:
        backend: AttentionBackend = ReferenceAttention() if kernels is None else CpuAttention(kernels)
        context, tap = _attach(model, probe, backend, rope_border=rope_border)
        if probe.states:
            state_rows = StateRows(probe.states, num_slots=options.num_slots, device=device)
            decoder = StateDecoder(model, context, tap, rows=state_rows, device=device)
            layout, state_bytes = "state", state_rows.num_bytes
        else:
            decoder = TransformersDecoder(model, context, tap, device=device)
        weight_bytes = _weight_bytes(model)

    facts = ModelFacts(
        model_type=str(config.model_type),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        vocab_size=int(probe.logits_V_by_text[0].shape[-1]),
        eos_token_ids=find_eos_token_ids(options.model_dir),
        max_model_tokens=max_tokens,
        weight_bytes=weight_bytes,
        tokenizer_digest=find_tokenizer_digest(options.model_dir),
        block_size=options.block_size,
        kv_specs=tuple(layer.spec for layer in probe.layers),
        can_project=False,
        layout=layout,
        state_bytes=state_bytes,
        rope_border=rope_border,
    )
    runner = ModelRunner(model=model, decoder=decoder, facts=facts, parallel=parallel, kernels=kernels)
    try:
        check_against_probe(runner, texts=probe_texts, expected_V_by_text=probe.logits_V_by_text)
    except UnsupportedModelError as error:
        if reason is None:
            raise _FastDecoderDiffers(str(error)) from error
        raise
    runner.facts = facts = replace(facts, can_project=can_project(runner, texts=probe_texts))
    trim_heap()
    on_progress("warmup", 1.0)
    log.info(
        "model loaded",
        extra={
            "model_type": facts.model_type,
            "dtype": facts.dtype,
            "weight_bytes": facts.weight_bytes,
            "num_attention_layers": len(facts.kv_specs),
            "num_divided_layers": len(plan.role_of_module),
            "native_kernels": None if kernels is None else kernels.features,
            "native_decoder": "yes" if reason is None else f"no: {reason}",
            "load_s": round(time.monotonic() - started, 3),
        },
    )
    return runner


def pick_dtype(asked: str, *, config: Any, device: torch.device) -> str:
    """`auto`: on a CPU bfloat16 where it computes in it, else float32; on a GPU what the checkpoint is stored in."""
    if asked != "auto":
        if asked not in DTYPES:
            raise ModelError(f"dtype is {asked}, it can be auto, {', '.join(DTYPES)}")
        return asked
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
    stored = str(getattr(config.get_text_config(), "dtype", None) or "").removeprefix("torch.")
    return stored if stored in ("bfloat16", "float16") else "bfloat16"


def _read_config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        # Says what the folder holds instead, if anything.
        find_weight_files(folder)
        raise ModelFilesError(f"{folder} has no config.json")
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedModelError(f"{folder / 'config.json'} is not understood: {error}") from error


def _build_and_fill(
    *,
    config: Any,
    files: WeightFiles,
    options: LoadOptions,
    dtype: torch.dtype,
    device: torch.device,
    parallel: TensorParallel,
    on_progress: Callable[[float], None],
) -> tuple[Any, IndexPlan]:
    try:
        # Parameters on `meta`, buffers computed for real: no checkpoint holds the rotary tables.
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(f"models of type {config.model_type} do not generate text: {error}") from error
    model.eval()
    matching = match_names(model, files)
    if matching.missing and parallel.world_size == 1:
        model = _fill_by_transformers(options.model_dir, dtype=dtype, device=device)
        return model, IndexPlan()
    check_matching(matching, folder=options.model_dir)
    plan = build_index_plan(model, config, parallel)
    read_weights(model, files=files, matching=matching, plan=plan, dtype=dtype, device=device, on_progress=on_progress)
    move_buffers(model, device)
    _divide(model, plan, parallel)
    return model, plan


def _fill_by_transformers(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """For checkpoints whose names or shapes transformers converts on the way (experts stored one by one)."""
    disable_progress_bar()
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelFilesError(f"{folder} lacks {len(missing)} tensors of the model, first {missing[0]}")
    return model.eval().to(device)


def _divide(model: nn.Module, plan: IndexPlan, parallel: TensorParallel) -> None:
    for name, role in plan.role_of_module.items():
        parent_name, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = divide_layer(
            model.get_submodule(name),
            role=role,
            run=plan.cut_of_parameter[f"{name}.weight"].run,
            parallel=parallel,
            vocabulary_sizes=plan.sizes_of_vocabulary,
        )
        setattr(parent, leaf, layer)


def _attach(
    model: Any, probe: ProbeResult, backend: AttentionBackend, *, rope_border: int | None
) -> tuple[StepContext, DecoderTap]:
    """Let the model's attention layers read the paged pool, and its hidden states be tapped."""
    context = StepContext(backend=backend)
    if rope_border is not None:
        choose_long_tables_by_token(model, context, border=rope_border)
    register_attention()
    model.set_attn_implementation(PAGED_ATTENTION)
    for index, layer in enumerate(probe.layers):
        attach_layer(layer.module, PagedLayer(context=context, index=index, rule=layer.rule))
    return context, DecoderTap(_find_decoder(model))


def _load_kernels(options: LoadOptions, *, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    if options.native_cache_dir is None or device.type != "cpu" or dtype not in NATIVE_DTYPES:
        return None
    return load_kernels(options.native_cache_dir, num_threads=options.num_threads)


def _why_not_fast(
    model: Any,
    probe: ProbeResult,
    *,
    options: LoadOptions,
    kernels: Kernels | None,
    parallel: TensorParallel,
    rope_border: int | None,
) -> str | None:
    """Give why transformers' code runs this model; None: the native decoder does."""
    if kernels is None:
        return "there are no native kernels"
    if not options.fast_decoder:
        return "it is switched off"
    if parallel.world_size > 1:
        return "the model is divided among ranks"
    if rope_border is not None:
        return "there is a rotary table per request"
    if probe.states:
        return "layers carry state from token to token"
    return why_not_fast(model, [layer.rule for layer in probe.layers])


def _find_decoder(model: Any) -> Any:
    """The part that gives hidden states to the head."""
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    # Wrappers whose names transformers does not know: the one part that is a model of its own.
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(parts) != 1:
        raise UnsupportedModelError(f"models of type {model.config.model_type} have no decoder that is known")
    return parts[0]


def _max_model_tokens(config: Any) -> int:
    text_config = config.get_text_config()
    for name in _LENGTH_FIELDS:
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 0


def _weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers of this rank; tied tensors count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
