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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.logging import disable_progress_bar

from textmill_shard.distributed.index_plan import IndexPlan, build_index_plan
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelError, ModelFilesError, UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.layers.parallel_layers import divide_layer
from textmill_shard.layouts.arrange import Layout, LayoutRequest, arrange, arrange_encoder_decoder, arrange_padded
from textmill_shard.layouts.rope_tables import (
    find_rope_border,
    fix_dynamic_tables,
    longest_dynamic_total,
)
from textmill_shard.loader.encoder_facts import find_encoder_facts, reads_with_encoder
from textmill_shard.loader.model_files import (
    WeightFiles,
    find_eos_token_ids,
    find_tokenizer_digest,
    find_weight_files,
    read_json,
)
from textmill_shard.loader.weight_reader import check_matching, match_names, move_buffers, read_weights
from textmill_shard.model.runner import ModelFacts, ModelRunner
from textmill_shard.native.kernels import DTYPES as NATIVE_DTYPES
from textmill_shard.native.kernels import Kernels, load_kernels
from textmill_shard.options import SWAPS
from textmill_shard.probing.start_check import CALL_ERRORS, PROBE_TEXTS, can_project, check_against_probe
from textmill_shard.probing.state_probe import carries_state

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
_BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")  # as torch names them; the last one on ARM
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
    native_decoder: bool = True  # a native call per step for llama-type models; needs the native kernels
    trust_remote_code: bool = False  # run modelling code that lies in the folder
    allow_pickle: bool = False  # read *.bin where there are no safetensors
    disabled_swaps: tuple[str, ...] = ()  # of module_swaps.SWAPS: layers of transformers' code that stay as they are


class _SwapsDiffer(Exception):
    """With swapped layers the model does not compute what it did before; their originals are gone by then."""


class _NativeDecoderDiffers(Exception):
    """The native decoder does not compute what the model computes; its weights are gone by then."""


def load_model(options: LoadOptions, on_progress: OnProgress, parallel: TensorParallel | None = None) -> ModelRunner:
    """Give a runner that still needs `allocate_kv`. Raises ModelError with a sentence for the operator."""
    parallel = parallel or TensorParallel()
    try:
        return _load(options, on_progress, parallel)
    except _NativeDecoderDiffers as difference:
        log.warning("the native decoder does not fit: loading again without it", extra={"reason": str(difference)})
        options = replace(options, native_decoder=False)
    except _SwapsDiffer as difference:
        options = _without_swaps(options, difference)
    try:
        return _load(options, on_progress, parallel)
    except _SwapsDiffer as difference:
        return _load(_without_swaps(options, difference), on_progress, parallel)


def _without_swaps(options: LoadOptions, difference: _SwapsDiffer) -> LoadOptions:
    log.warning("module swaps do not fit: loading again without them", extra={"reason": str(difference)})
    return replace(options, disabled_swaps=SWAPS)


def _load(options: LoadOptions, on_progress: OnProgress, parallel: TensorParallel) -> ModelRunner:
    started = time.monotonic()
    on_progress("config", 0.0)
    config = _read_config(options.model_dir, trust_remote_code=options.trust_remote_code)
    device = torch.device(options.device)
    dtype: torch.dtype = getattr(torch, pick_dtype(options.dtype, config=config, device=device))
    files = find_weight_files(options.model_dir, allow_pickle=options.allow_pickle)
    if parallel.world_size > 1:
        _check_divisible(config)

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
    encoder = find_encoder_facts(options.model_dir, config, model) if reads_with_encoder(config) else None
    max_tokens = longest_dynamic_total(config) or _max_model_tokens(config)
    if encoder is not None:
        max_tokens = encoder.max_decoder_tokens
    fix_dynamic_tables(model, max_tokens=max_tokens)
    rope_border = find_rope_border(config)
    vocab_size = int(config.get_text_config().vocab_size)
    probe_texts = tuple(torch.tensor(text, device=device) % vocab_size for text in PROBE_TEXTS)
    kernels = _load_kernels(options, dtype=dtype, device=device)
    request = LayoutRequest(
        model=model,
        texts=probe_texts,
        device=device,
        max_tokens=max_tokens,
        rope_border=rope_border,
        num_slots=options.num_slots,
        num_ranks=parallel.world_size,
        kernels=kernels,
        wants_native_decoder=options.native_decoder,
        disabled_swaps=options.disabled_swaps,
    )

    def runner_of(layout: Layout) -> ModelRunner:
        facts = ModelFacts(
            model_type=str(config.model_type),
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            vocab_size=int(layout.logits_V_by_text[0].shape[-1]),
            eos_token_ids=find_eos_token_ids(options.model_dir),
            max_model_tokens=max_tokens,
            weight_bytes=layout.weight_bytes,
            tokenizer_digest=find_tokenizer_digest(options.model_dir),
            block_size=options.block_size,
            kv_specs=layout.kv_specs,
            can_project=False,
            layout=layout.name,
            state_bytes=layout.state_bytes,
            rope_border=rope_border,
            decoder_prompt_ids=() if encoder is None else encoder.decoder_prompt_ids,
            max_encoder_tokens=0 if encoder is None else encoder.max_encoder_tokens,
        )
        runner = ModelRunner(model=model, decoder=layout.decoder, facts=facts, parallel=parallel, kernels=kernels)
        check_against_probe(runner, texts=probe_texts, expected_V_by_text=layout.logits_V_by_text)
        return runner

    layout: Layout | None = None
    try:
        layout = arrange(request) if encoder is None else arrange_encoder_decoder(request)
        runner = runner_of(layout)
    except UnsupportedModelError as reason:
        if encoder is not None:
            raise
        if layout is not None and layout.is_native:
            raise _NativeDecoderDiffers(str(reason)) from reason
        if layout is not None and layout.swaps:
            raise _SwapsDiffer(str(reason)) from reason
        layout, runner = _arrange_padded(request, runner_of, reason)
    facts = runner.facts
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
            "layout": facts.layout,
            "native_decoder": "yes" if layout.is_native else f"no: {layout.why_not_native}",
            "module_swaps": ", ".join(f"{name} {count}" for name, count in layout.swaps.items()) or "none",
            "load_s": round(time.monotonic() - started, 3),
        },
    )
    return runner


def _auto_class(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if reads_with_encoder(config) else AutoModelForCausalLM


def _check_divisible(config: Any) -> None:
    """Raises UnsupportedModelError for what only one shard can serve."""
    reason = None
    if reads_with_encoder(config):
        reason = "read their input with an encoder"
    elif carries_state(config):
        reason = "have layers that carry state from token to token"
    if reason is not None:
        raise UnsupportedModelError(
            f"models of type {config.model_type} {reason} and cannot be divided among shards yet; use --num-shard 1"
        )


def pick_dtype(asked: str, *, config: Any, device: torch.device) -> str:
    """`auto`: on a CPU bfloat16 where it computes in it, else float32; on a GPU what the checkpoint is stored in."""
    if asked != "auto":
        if asked not in DTYPES:
            raise ModelError(f"dtype is {asked}, it can be auto, {', '.join(DTYPES)}")
        return asked
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bfloat16" if any(capabilities.get(name) for name in _BF16_CAPABILITIES) else "float32"
    stored = str(getattr(config.get_text_config(), "dtype", None) or "").removeprefix("torch.")
    return stored if stored in ("bfloat16", "float16") else "bfloat16"


def _read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        # Says what the folder holds instead, if anything.
        find_weight_files(folder)
        raise ModelFilesError(f"{folder} has no config.json")
    own_code = sorted(set((read_json(folder / "config.json").get("auto_map") or {}).values()))
    try:
        # Never None: transformers would ask on the terminal.
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError) as error:
        if own_code and not trust_remote_code:
            raise UnsupportedModelError(
                f"{folder} brings modelling code of its own ({', '.join(map(str, own_code))}), which runs with all the "
                "rights of the shard; read it, and give --trust-remote-code if you trust it"
            ) from error
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
            model = _auto_class(config).from_config(
                config, dtype=torch.float32, trust_remote_code=options.trust_remote_code
            )
    except (*CALL_ERRORS, ImportError) as error:
        raise UnsupportedModelError(_why_not_built(config, error)) from error
    model.eval()
    matching = match_names(model, files)
    if matching.missing and parallel.world_size == 1:
        model = _fill_by_transformers(_auto_class(config), options, files, dtype=dtype, device=device)
        return model, IndexPlan()
    check_matching(matching, folder=options.model_dir)
    plan = build_index_plan(model, config, parallel)
    read_weights(model, files=files, matching=matching, plan=plan, dtype=dtype, device=device, on_progress=on_progress)
    move_buffers(model, device)
    _divide(model, plan, parallel)
    return model, plan


def _why_not_built(config: Any, error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    if first_line.startswith("Unrecognized configuration class"):
        kind = "text-to-text" if reads_with_encoder(config) else "causal"
        return f"models of type {config.model_type} do not generate text: transformers has no {kind} model of that kind"
    what = f"{type(error).__name__}: {first_line}"
    return f"a model of type {config.model_type} cannot be built from its config.json: {what}"


def _fill_by_transformers(
    auto_class: Any, options: LoadOptions, files: WeightFiles, *, dtype: torch.dtype, device: torch.device
) -> Any:
    """For checkpoints whose names or shapes transformers converts on the way (experts stored one by one)."""
    disable_progress_bar()
    folder = options.model_dir
    model, loading = auto_class.from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        use_safetensors=not files.are_pickled,
        weights_only=True,
        trust_remote_code=options.trust_remote_code,
    )
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
            indices=plan.cut_of_parameter[f"{name}.weight"].indices,
            parallel=parallel,
            vocabulary_sizes=plan.sizes_of_vocabulary,
        )
        setattr(parent, leaf, layer)


def _arrange_padded(
    request: LayoutRequest, runner_of: Callable[[Layout], ModelRunner], reason: UnsupportedModelError
) -> tuple[Layout, ModelRunner]:
    """The last resort. Raises UnsupportedModelError with both reasons."""
    layout: Layout | None = None
    try:
        layout = arrange_padded(request)
        return layout, runner_of(layout)
    except UnsupportedModelError as second:
        if layout is not None and layout.swaps:
            raise _SwapsDiffer(str(second)) from second
        raise UnsupportedModelError(f"{reason}; nor by the model's own attention code: {second}") from second


def _load_kernels(options: LoadOptions, *, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    if options.native_cache_dir is None or device.type != "cpu" or dtype not in NATIVE_DTYPES:
        return None
    return load_kernels(options.native_cache_dir, num_threads=options.num_threads)


def _max_model_tokens(config: Any) -> int:
    text_config = config.get_text_config()
    for name in _LENGTH_FIELDS:
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 0
