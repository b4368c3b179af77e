"""Finds the model folder that was made of a GGUF file, in a content-addressed cache, or has the folder made.

transformers is imported to make a folder and not to find one, so that each start after the first is quick.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from textmill_shard.loader.gguf_header import GgufHeader
from textmill_shard.loader.gguf_parts import read_parts
from textmill_shard.loader.model_files import find_weight_files

# Part of the cache's key: raise it when the same file would convert to something else.
CONVERTER_VERSION = 4
_READ_BYTES = 1 << 22


def convert_gguf(gguf_file: Path, cache_dir: Path, dtype: str = "bfloat16") -> Path:
    """Give the converted folder; converts only when the cache lacks it. Safe when several start at once.

    A file that is a part of a model is read with the other parts beside it. Raises ModelFilesError for a file that is
    damaged, that holds what is read nowhere, or whose architecture cannot be read.
    """
    parts = read_parts(gguf_file)
    target = cache_dir / f"{parts[0].path.stem}-{_digest(parts)}-{dtype}"
    if target.is_dir():
        find_weight_files(target)  # raises when somebody emptied it
        return target
    from textmill_shard.loader.gguf_convert import convert_parts  # imports transformers, which takes seconds

    convert_parts(parts, target, dtype=dtype)
    return target


def _digest(parts: Sequence[GgufHeader]) -> str:
    """Hex blake2b over the files and the version of this converter."""
    digest = hashlib.blake2b(f"v{CONVERTER_VERSION}".encode(), digest_size=12)
    for part in parts:
        with part.path.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
