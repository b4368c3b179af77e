"""Makes of a folder with TAPAS a runner of tables with its facts."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForTableQuestionAnswering

from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.load_options import OnProgress
from textmill_shard.loader.model_config import read_config
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.tasks.rows import HeadName, RowFailure, TableRow
from textmill_shard.tasks.table_head import TableRunner
from textmill_shard.tasks.table_reader import QuickTapasTokenizer, TableLimits, TableReader
from textmill_shard.tasks.task_loader import TaskOptions, row_source

log = logging.getLogger(__name__)

_COLUMN_TYPE, _ROW_TYPE, _RANK_TYPES = 1, 2, slice(4, 6)  # places in `type_vocab_sizes`
_TRIAL_ROWS = 60


@dataclass(frozen=True, slots=True)
class LoadedTables:
    """A runner, the reader of its tables, and the facts of its model."""

    runner: TableRunner
    reader: TableReader
    model_type: str
    dtype: str
    labels: tuple[str, ...]  # what is to be done with the cells, by the index of `CellChoice.label`
    max_row_tokens: int
    weight_bytes: int
    batch_s: float  # seconds of a table


def load_tables(options: TaskOptions, on_progress: OnProgress) -> LoadedTables:
    """Return the runner. Raises ModelError with a sentence for the operator."""
    started = time.monotonic()
    on_progress("config", 0.0)
    source = _read(options)
    tokenizer = _tokenizer(source)
    on_progress("weights", 0.0)
    model = fill_model(build_model(source), source, on_progress=lambda share: on_progress("weights", share)).model
    on_progress("warmup", 0.0)
    limits = _limits(source.config, tokenizer)
    runner = TableRunner(model, device=source.device)
    reader = TableReader(tokenizer, limits)
    batch_s = _warm_up(runner, reader)
    trim_heap()
    weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    dtype = str(source.dtype).removeprefix("torch.")
    facts = {"model_type": source.config.model_type, "task": options.task, "dtype": dtype}
    log.info(
        "model loaded",
        extra={**facts, "weight_bytes": weight_bytes, "load_s": round(time.monotonic() - started, 3)},
    )
    return LoadedTables(
        runner=runner,
        reader=reader,
        model_type=str(source.config.model_type),
        dtype=dtype,
        labels=_labels(source),
        max_row_tokens=limits.max_tokens,
        weight_bytes=weight_bytes,
        batch_s=batch_s,
    )


def _read(options: TaskOptions) -> ModelSource:
    folder = options.model_dir
    config = read_config(folder, trust_remote_code=options.trust_remote_code)
    if config.model_type != "tapas":
        raise UnsupportedModelError(
            f"models of type {config.model_type} cannot be served as {options.task}: tables are read by TAPAS"
        )
    return row_source(options, folder, config, AutoModelForTableQuestionAnswering)


def _tokenizer(source: ModelSource) -> QuickTapasTokenizer:
    with as_model_error(lambda said: ModelFilesError(f"the tokenizer of {source.folder} cannot be read: {said}")):
        tokenizer: QuickTapasTokenizer = QuickTapasTokenizer.from_pretrained(source.folder)
    tokenizer.noted = threading.local()
    tokenizer.model_max_length = min(tokenizer.model_max_length, source.config.max_position_embeddings)
    return tokenizer


def _limits(config: Any, tokenizer: QuickTapasTokenizer) -> TableLimits:
    sizes = config.type_vocab_sizes
    return TableLimits(
        max_tokens=tokenizer.model_max_length,
        max_rows=min(sizes[_ROW_TYPE], *sizes[_RANK_TYPES], tokenizer.max_row_id) - 1,
        max_columns=min(sizes[_COLUMN_TYPE], tokenizer.max_column_id) - 1,
    )


def _labels(source: ModelSource) -> tuple[str, ...]:
    """Return the names of what is to be done with the cells. Raises ModelFilesError where one has no name."""
    names, count = source.config.aggregation_labels, source.config.num_aggregation_labels
    if not names or not count:
        return ()
    missing = [number for number in range(count) if number not in names]
    if missing:
        raise ModelFilesError(
            f"{source.folder / 'config.json'} has {count} aggregation labels, aggregation_labels lacks {missing[0]}"
        )
    return tuple(str(names[number]) for number in range(count))


def _warm_up(runner: TableRunner, reader: TableReader) -> float:
    """Compute a table twice, and return the seconds of the second time. Raises UnsupportedModelError."""
    cells = tuple(str(number) for number in range(2 * _TRIAL_ROWS))
    row = TableRow(columns=("a", "b"), cells=cells, questions=("which is 7",))
    seconds = 0.0
    for _ in range(2):
        began_s = time.monotonic()
        (answer,) = runner.run(HeadName.CELLS, reader.read([row]))
        seconds = time.monotonic() - began_s
        if isinstance(answer, RowFailure):
            raise UnsupportedModelError(f"the model cannot be served: it fails at a plain table: {answer.message}")
    return seconds
