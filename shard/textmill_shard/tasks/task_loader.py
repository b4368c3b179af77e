"""Makes of a model folder and a task a runner of rows with its facts."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.loader.load_options import OnProgress
from textmill_shard.loader.model_config import DTYPES, pick_dtype, read_config
from textmill_shard.loader.model_files import find_tokenizer_digest, find_weight_files
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.loader.stored_form import find_stored_form
from textmill_shard.loader.token_ids import check_padding_id
from textmill_shard.native.kernels import DTYPES as NATIVE_DTYPES
from textmill_shard.native.kernels import Kernels, load_kernels
from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.file_facts import (
    find_max_row_tokens,
    find_num_token_types,
    find_tokenizer,
    read_labels,
    read_problem_type,
)
from textmill_shard.tasks.heads import (
    Head,
    LabelHead,
    MaskHead,
    SparseVectorHead,
    TokenLabelHead,
    TokenVectorHead,
    VectorHead,
)
from textmill_shard.tasks.layout_choice import TOLERANCE, RowComparison, choose_row_layout, probe_rows, swap_row_layers
from textmill_shard.tasks.row_forward import RowForward
from textmill_shard.tasks.row_runner import RowRunner
from textmill_shard.tasks.rows import HeadName, Row, VectorParams
from textmill_shard.tasks.span_head import SpanHead
from textmill_shard.tasks.task_table import HEADS_OF_TASK, auto_class_of_head, class_options_of_head
from textmill_shard.tasks.vector_modules import VectorModules, read_vector_modules

log = logging.getLogger(__name__)

_LABELLED = (HeadName.LABELS, HeadName.TOKEN_LABELS)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The model to load, its task, and the way to load it."""

    model_dir: Path
    task: str
    dtype: str = "auto"  # "auto" or one of model_config.DTYPES
    device: str = "cpu"
    pooling: str = "auto"  # "auto", "none" or one of vector_modules.POOLINGS
    native_cache_dir: Path | None = None  # where compiled kernels are kept; None = plain torch only
    num_threads: int = 1  # of the native kernels
    trust_remote_code: bool = False
    allow_pickle: bool = False
    disabled_swaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A runner, and the facts of its model that follow from files and weights."""

    runner: RowRunner
    heads: tuple[HeadName, ...]
    model_type: str
    dtype: str
    labels: tuple[str, ...]
    problem_type: str
    max_row_tokens: int
    vector_width: int
    token_vector_width: int
    is_normalized: bool
    vocab_size: int
    num_token_types: int
    mask_token_id: int | None
    tokenizer_digest: str
    weight_bytes: int


def load_task(options: TaskOptions, on_progress: OnProgress) -> LoadedTask:
    """Return the runner. Raises ModelError with a sentence for the operator."""
    started = time.monotonic()
    on_progress("config", 0.0)
    heads, modules = _find_heads(options)
    folder = options.model_dir if modules is None else modules.model_dir
    source = _read(options, folder, heads[0])
    tokenizer = find_tokenizer(folder)
    kernels = _load_kernels(options, source)
    model = _fill(source, on_progress)
    weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    on_progress("warmup", 0.0)
    vocab_size = int(model.get_input_embeddings().weight.shape[0])
    max_row_tokens = find_max_row_tokens(folder, source.config, model, tokenizer)
    rows = probe_rows(source.config, vocab_size=vocab_size, max_row_tokens=max_row_tokens)
    forward, swaps = _arrange(model, source, rows, kernels, options, refill=lambda: _fill(source, on_progress))
    runner = RowRunner(forward, _make_heads(heads, modules), vocab_size=vocab_size)
    if HeadName.MASKS in heads or HeadName.SPARSE_VECTORS in heads:
        with torch.inference_mode():
            forward.try_tap(rows, tolerance=TOLERANCE[source.dtype])
    if HeadName.VECTORS in heads:
        assert modules is not None
        modules.after.to(source.device)
    token_width = _width(runner, HeadName.TOKEN_VECTORS, rows[0]) if HeadName.TOKEN_VECTORS in heads else 0
    vector_width = _width(runner, HeadName.VECTORS, rows[0]) if HeadName.VECTORS in heads else 0
    trim_heap()
    log.info(
        "model loaded",
        extra={
            "model_type": source.config.model_type,
            "task": options.task,
            "heads": ", ".join(head.value for head in heads),
            "dtype": str(source.dtype).removeprefix("torch."),
            "weight_bytes": weight_bytes,
            "native_kernels": None if kernels is None else kernels.features,
            "layout": forward.layout.value,
            "module_swaps": ", ".join(f"{name} {count}" for name, count in swaps.items()) or "none",
            "load_s": round(time.monotonic() - started, 3),
        },
    )
    is_labelled = heads[0] in _LABELLED
    return LoadedTask(
        runner=runner,
        heads=heads,
        model_type=str(source.config.model_type),
        dtype=str(source.dtype).removeprefix("torch."),
        labels=read_labels(source.config, folder) if is_labelled else (),
        problem_type=read_problem_type(source.config, folder) if is_labelled else "",
        max_row_tokens=max_row_tokens,
        vector_width=vector_width,
        token_vector_width=token_width,
        is_normalized=modules is not None and modules.is_normalized,
        vocab_size=vocab_size,
        num_token_types=find_num_token_types(source.config, tokenizer, reads_types=forward.reads_types),
        mask_token_id=tokenizer.mask_token_id if HeadName.MASKS in heads else None,
        tokenizer_digest=find_tokenizer_digest(folder),
        weight_bytes=weight_bytes,
    )


def _find_heads(options: TaskOptions) -> tuple[tuple[HeadName, ...], VectorModules | None]:
    heads = HEADS_OF_TASK[options.task]
    if HeadName.VECTORS not in heads:
        return heads, None
    modules = read_vector_modules(options.model_dir, asked_pooling=options.pooling, allow_pickle=options.allow_pickle)
    if modules.is_sparse:
        return (HeadName.SPARSE_VECTORS,), modules
    return heads if modules.pooling is not None else (HeadName.TOKEN_VECTORS,), modules


def _read(options: TaskOptions, folder: Path, head: HeadName) -> ModelSource:
    config = read_config(folder, trust_remote_code=options.trust_remote_code)
    check_padding_id(config, folder)
    auto_class = auto_class_of_head(head, config)
    return row_source(options, folder, config, auto_class, class_options_of_head(head, config, auto_class))


def row_source(
    options: TaskOptions, folder: Path, config: Any, auto_class: Any, class_options: Mapping[str, Any] | None = None
) -> ModelSource:
    """Return where the model of a row task comes from and what becomes of it: whole, on one device, in one dtype.

    Raises ModelFilesError for weights that are missing or in a form that is not read.
    """
    device = torch.device(options.device)
    return ModelSource(
        folder=folder,
        config=config,
        files=find_weight_files(
            folder, allow_pickle=options.allow_pickle, named=getattr(config, "transformers_weights", None)
        ),
        form=find_stored_form(config, folder, num_ranks=1),
        dtype=getattr(torch, pick_row_dtype(options.dtype, config, device)),
        device=device,
        parallel=TensorParallel(),
        trust_remote_code=options.trust_remote_code,
        auto_class=auto_class,
        class_options=dict(class_options or {}),
    )


def pick_row_dtype(asked: str, config: Any, device: torch.device) -> str:
    """Return the dtype. `auto` is float32 on a CPU, because scores and vectors are compared, and else as stored."""
    if asked != "auto":
        return pick_dtype(asked, config=config, device=device)
    stored = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    return stored if device.type != "cpu" and stored in DTYPES else "float32"


def _load_kernels(options: TaskOptions, source: ModelSource) -> Kernels | None:
    if options.native_cache_dir is None or source.device.type != "cpu" or source.dtype not in NATIVE_DTYPES:
        return None
    return load_kernels(options.native_cache_dir, num_threads=options.num_threads)


def _fill(source: ModelSource, on_progress: OnProgress) -> Any:
    on_progress("weights", 0.0)
    return fill_model(build_model(source), source, on_progress=lambda share: on_progress("weights", share)).model


def _arrange(
    model: Any,
    source: ModelSource,
    rows: list[Row],
    kernels: Kernels | None,
    options: TaskOptions,
    *,
    refill: Callable[[], Any],
) -> tuple[RowForward, dict[str, int]]:
    """Return the forward pass, and how many layers were swapped."""
    forward, comparison = _choose(model, source, rows)
    if kernels is None:
        return forward, {}
    swaps = swap_row_layers(forward, comparison, kernels, disabled=options.disabled_swaps)
    if swaps is not None:
        return forward, swaps
    log.warning("native layers change this model's results: the weights are read again for plain layers")
    forward, _ = _choose(refill(), source, rows)
    return forward, {}


def _choose(model: Any, source: ModelSource, rows: list[Row]) -> tuple[RowForward, RowComparison]:
    try:
        with torch.inference_mode():
            comparison = RowComparison(model, rows, device=source.device, dtype=source.dtype)
    except CALL_ERRORS as error:
        raise UnsupportedModelError(
            f"models of type {source.config.model_type} cannot be served as {type(model).__name__}: their code fails "
            f"at a plain text ({type(error).__name__}: {error})"
        ) from error
    comparison.check_finite(source.folder)
    return choose_row_layout(model, comparison, device=source.device), comparison


def _make_heads(heads: tuple[HeadName, ...], modules: VectorModules | None) -> dict[HeadName, Head]:
    made: dict[HeadName, Head] = {
        HeadName.TOKEN_VECTORS: TokenVectorHead(),
        HeadName.SPARSE_VECTORS: SparseVectorHead(is_max=modules is None or modules.is_max),
        HeadName.LABELS: LabelHead(),
        HeadName.TOKEN_LABELS: TokenLabelHead(),
        HeadName.MASKS: MaskHead(),
        HeadName.SPANS: SpanHead(),
    }
    if modules is not None and modules.pooling is not None:
        made[HeadName.VECTORS] = VectorHead(modules.pooling, modules.after, is_normalized=modules.is_normalized)
    return {head: made[head] for head in heads}


def _width(runner: RowRunner, head: HeadName, row: Row) -> int:
    params = VectorParams(is_normalized=False) if head is HeadName.VECTORS else None
    (answer,) = runner.run(head, [Row(row.token_ids, None, params)])
    shape = getattr(answer, "shape", None)
    if shape is None:
        raise UnsupportedModelError(f"the layers behind the pooling do not fit the model: {answer}")
    return int(shape[-1])
