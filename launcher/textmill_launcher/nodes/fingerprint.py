"""Digests by which nodes see that they have one checkpoint. Large files are sampled, because all bytes take minutes."""

import hashlib
from pathlib import Path

WHOLE_BYTES = 16 * 1024**2  # a file up to this size is read whole
HEAD_BYTES = 1024**2  # holds the header of a safetensors file, or its beginning
SAMPLE_BYTES = 4096
NUM_SAMPLES = 256
_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json")


def digests_of(folder: Path, *, with_code: bool = False, with_pickles: bool = False) -> dict[str, str]:
    """Return the digest of each file of a model folder on which the ranks' results depend.

    A digest covers the size and, of a file above `WHOLE_BYTES`, the beginning and evenly spread samples: two trainings
    differ in nearly all of their weights. Takes some milliseconds for each file. Raises OSError for a file that cannot
    be read.
    """
    files = [folder / name for name in _SMALL_FILES if (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors")) or (sorted(folder.glob("*.bin")) if with_pickles else [])
    files += weights
    if with_code:
        files += sorted(folder.glob("*.py"))
    return {file.name: _digest_of(file) for file in files}


def _digest_of(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.blake2b(str(size).encode() + b"\n", digest_size=16)
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            digest.update(stream.read())
            return digest.hexdigest()
        digest.update(stream.read(HEAD_BYTES))
        for number in range(NUM_SAMPLES):
            stream.seek(HEAD_BYTES + (size - HEAD_BYTES - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
