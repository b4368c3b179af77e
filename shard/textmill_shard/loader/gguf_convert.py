"""Turns the GGUF files of a model into a model folder: safetensors, config and tokenizer."""

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from textmill_shard.cores import usable_cores
from textmill_shard.loader.gguf_header import GgufHeader, read_header
from textmill_shard.loader.gguf_model import write_model
from textmill_shard.loader.gguf_parts import join_parts
from textmill_shard.loader.gguf_tokenizer import write_tokenizer

log = logging.getLogger(__name__)


def convert_parts(parts: Sequence[GgufHeader], target: Path, *, dtype: str) -> None:
    """Make a model folder of all files of a model. Another process may make the folder at once.

    The folder is whole before it gets its name. Raises ModelFilesError for files that hold what is read nowhere, or
    whose architecture cannot be read.
    """
    started = time.monotonic()
    torch.set_num_threads(usable_cores())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        header = parts[0] if len(parts) == 1 else _join(parts, Path(scratch) / f"{parts[0].path.stem}.gguf")
        write_model(header, folder, dtype=getattr(torch, dtype))
        write_tokenizer(header.path, folder)
        for path in folder.rglob("*"):
            if path.is_file():
                _flush(path)
        try:
            os.rename(folder, target)
        except OSError as error:
            # Another process was faster; what it wrote is the same.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(folder)
    log.info(
        "model converted", extra={"folder": str(target), "dtype": dtype, "convert_s": round(time.monotonic() - started)}
    )


def _join(parts: Sequence[GgufHeader], target: Path) -> GgufHeader:
    join_parts(parts, target)
    return read_header(target)


def _flush(path: Path) -> None:
    """To the disk, before the folder gets its name: a power cut must not leave a full name on empty files."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
