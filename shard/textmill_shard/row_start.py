"""Starts a shard of rows: the model of a task, the memory of its largest batch, and the loop that computes batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from textmill_shard.engine.status import ShardStatus
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.options import MEDIA_TASKS, STRING_TASKS, TABLE_TASK
from textmill_shard.settings import ServeSettings
from textmill_shard.tasks.row_forward import RowLayout
from textmill_shard.tasks.row_loop import RowLoop
from textmill_shard.tasks.row_memory import RowMemoryOptions, plan_row_memory
from textmill_shard.tasks.rows import HeadName
from textmill_shard.tasks.task_facts import TaskFacts
from textmill_shard.tasks.task_loader import TaskOptions, load_task

if TYPE_CHECKING:
    from textmill_shard.tasks.media_rows import MediaReader
    from textmill_shard.tasks.string_rows import StringReader
    from textmill_shard.tasks.table_reader import TableReader


@dataclass(frozen=True, slots=True)
class StartedRows:
    """The facts of a loaded model, and the loop that is ready to run. A model of files, tables or strings has a
    reader."""

    facts: TaskFacts
    loop: RowLoop
    reader: MediaReader | StringReader | TableReader | None = None


def start_rows(settings: ServeSettings, device: str, status: ShardStatus) -> StartedRows:
    """Load the model. Raises ModelError."""
    options = TaskOptions(
        model_dir=settings.model_dir,
        task=settings.task,
        dtype=settings.dtype,
        device=device,
        pooling=settings.pooling,
        native_cache_dir=None if settings.no_native_kernels else settings.native_cache_dir,
        num_threads=settings.num_threads,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
        disabled_swaps=settings.disable_swaps,
    )
    if settings.task == TABLE_TASK:
        return _start_tables(settings, options, status)
    if settings.task in STRING_TASKS:
        return _start_speaker(settings, options, status)
    if settings.task in MEDIA_TASKS:
        return _start_files(settings, options, status)
    return _start_texts(settings, options, status)


class _Loaded(Protocol):
    """The part of a loaded model that the facts of every task have."""

    @property
    def model_type(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...


def _facts(settings: ServeSettings, options: TaskOptions, loaded: _Loaded) -> TaskFacts:
    """Return the facts that every task has, to which each adds its own."""
    return TaskFacts(
        model_id=settings.model_id,
        model_sha=settings.model_sha,
        model_type=loaded.model_type,
        dtype=loaded.dtype,
        device=torch.device(options.device).type,
        task=settings.task,
        heads=(),
        labels=(),
        problem_type="",
        weight_bytes=loaded.weight_bytes,
    )


@contextmanager
def _packages_of(extra: str, task: str) -> Iterator[None]:
    """Tell the operator which extra brings a package that is missing. Raises UnsupportedModelError."""
    try:
        yield
    except ImportError as error:
        raise UnsupportedModelError(
            f"--task {task} needs the package {error.name}: pip install 'textmill[{extra}]'"
        ) from error


def _start_texts(settings: ServeSettings, options: TaskOptions, status: ShardStatus) -> StartedRows:
    loaded = load_task(options, status.report_loading)
    status.report_loading("warmup", 0.5)
    plan = plan_row_memory(
        loaded.runner,
        loaded.heads[0],
        RowMemoryOptions(
            max_batch_tokens=settings.max_batch_tokens,
            memory_fraction=settings.memory_fraction,
            num_replicas=settings.num_replicas,
        ),
        max_row_tokens=loaded.max_row_tokens,
        weight_bytes=loaded.weight_bytes,
    )
    status.progress.measure_warm_up(plan.batch_s)
    facts = replace(
        _facts(settings, options, loaded),
        heads=loaded.heads,
        labels=loaded.labels,
        problem_type=loaded.problem_type,
        max_row_tokens=plan.max_row_tokens,
        max_batch_tokens=plan.max_batch_tokens,
        counts_padding=loaded.runner.forward.layout is RowLayout.PADDED,
        vector_width=loaded.vector_width,
        token_vector_width=loaded.token_vector_width,
        is_normalized=loaded.is_normalized,
        vocab_size=loaded.vocab_size,
        num_token_types=loaded.num_token_types,
        mask_token_id=loaded.mask_token_id,
        tokenizer_digest=loaded.tokenizer_digest,
    )
    return StartedRows(facts, RowLoop(loaded.runner, status, max_batch_tokens=plan.max_batch_tokens))


def _start_files(settings: ServeSettings, options: TaskOptions, status: ShardStatus) -> StartedRows:
    """Start a model of images or audio. The packages that read files are imported here, because texts need none."""
    with _packages_of("tasks", settings.task):
        from textmill_shard.tasks.media_loader import MediaLimits, load_media
    limits = MediaLimits(max_pixels=settings.max_image_pixels, max_seconds=settings.max_audio_seconds)
    loaded = load_media(options, limits, status.report_loading)
    status.progress.measure_warm_up(loaded.batch_s)
    facts = replace(
        _facts(settings, options, loaded),
        heads=(loaded.head,),
        labels=loaded.labels,
        problem_type=loaded.problem_type,
        media=loaded.media,
        max_batch_files=loaded.max_batch_files,
        languages=loaded.languages,
        subtasks=loaded.subtasks,
        max_row_tokens=loaded.max_row_tokens,
    )
    return StartedRows(facts, RowLoop(loaded.runner, status, max_batch_tokens=1), loaded.runner.reader)


def _start_tables(settings: ServeSettings, options: TaskOptions, status: ShardStatus) -> StartedRows:
    """Start a model of tables. pandas is imported here, because no other task needs the package."""
    with _packages_of("tables", settings.task):
        from textmill_shard.tasks.table_loader import load_tables
    loaded = load_tables(options, status.report_loading)
    status.progress.measure_warm_up(loaded.batch_s)
    facts = replace(
        _facts(settings, options, loaded),
        heads=(HeadName.CELLS,),
        labels=loaded.labels,
        max_row_tokens=loaded.max_row_tokens,
        media="table",
        max_batch_files=1,
    )
    return StartedRows(facts, RowLoop(loaded.runner, status, max_batch_tokens=1), loaded.reader)


def _start_speaker(settings: ServeSettings, options: TaskOptions, status: ShardStatus) -> StartedRows:
    """Start a model that speaks. The packages that write audio are imported here, because texts need none."""
    with _packages_of("tasks", settings.task):
        from textmill_shard.tasks.speaking_loader import load_speaker
    loaded = load_speaker(options, settings.max_audio_seconds, status.report_loading)
    status.progress.measure_warm_up(loaded.batch_s)
    facts = replace(
        _facts(settings, options, loaded),
        heads=(HeadName.SOUNDS,),
        media="text",
        max_batch_files=1,
        num_speakers=loaded.num_speakers,
    )
    return StartedRows(facts, RowLoop(loaded.runner, status, max_batch_tokens=1), loaded.reader)
