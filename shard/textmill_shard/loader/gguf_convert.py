"""Turns a GGUF file into a model folder (safetensors, config, tokenizer) that lies in a content-addressed cache."""

import errno
import hashlib
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
from textmill_shard.loader.gguf_parts import join_parts, read_parts
from textmill_shard.loader.gguf_tokenizer import write_tokenizer
from textmill_shard.loader.model_files import find_weight_files

log = logging.getLogger(__name__)

# Part of the cache's key: raise it when the same file would convert to something else.
CONVERTER_VERSION = 4
_READ_BYTES = 1 << 22


def convert_gguf(gguf_file: Path, cache_dir: Path, dtype: str = "bfloat16") -> Path:
    """Give the converted folder; converts only when the cache lacks it. Safe when several start at once.

    A file that is a part of a model is read with the other parts beside it. What is converted is checked before it
    gets its name in the cache. Raises ModelFilesError for a file that is damaged, that holds what is read nowhere, or
    whose architecture cannot be read.
    """
    parts = read_parts(gguf_file)
    target = cache_dir / f"{parts[0].path.stem}-{_digest(parts)}-{dtype}"
    if target.is_dir():
        find_weight_files(target)  # raises when somebody emptied it
        return target
    started = time.monotonic()
    torch.set_num_threads(usable_cores())
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".converting-") as scratch:
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
    return target


def _join(parts: Sequence[GgufHeader], target: Path) -> GgufHeader:
    join_parts(parts, target)
    return read_header(target)


def _digest(parts: Sequence[GgufHeader]) -> str:
    """Hex blake2b over the files and the version of this converter."""
    digest = hashlib.blake2b(f"v{CONVERTER_VERSION}".encode(), digest_size=12)
    for part in parts:
        with part.path.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """To the disk, before the folder gets its name: a power cut must not leave a full name on empty files."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
