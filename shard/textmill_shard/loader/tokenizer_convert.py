"""Makes the tokenizer.json of a model folder that has only vocabulary files, in a folder of the cache.

transformers reads the vocabulary. The folder that is made holds tokenizer.json, tokenizer_config.json, and a link to
each other file of the model, so that router and shards read one tokenizer and nothing is written beside the model.
"""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.added_ids import check_added_ids, languages_of
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.piece_tokenizer import PIECE_CLASSES, write_piece_tokenizer

log = logging.getLogger(__name__)

# Part of the cache's key: raise it when the same files would convert to something else.
CONVERTER_VERSION = 3
TOKENIZER_FILE = "tokenizer.json"
# Files whose contents go into tokenizer.json and tokenizer_config.json, and which would say the same once more.
_FOLDED_IN = frozenset({"special_tokens_map.json", "added_tokens.json"})
_READ_SUFFIXES = (".json", ".txt", ".model", ".spm", ".jinja", ".py")
_DIGEST_FILE = ".tokenizer-digest"
_MOST_READ_BYTES = 64 * 1024**2  # of a file that can belong to a tokenizer
# Small letters without accents, because some classes write all texts so before they cut them.
CHECK_TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a model that reads texts must cut them as its training did",
    "in the morning she went to the market and bought bread",
    "ελλαδα москва зима",
    "天気 言葉 東京",
    "x",
)


def convert_tokenizer(folder: Path, cache_dir: Path, *, trust_remote_code: bool = False) -> Path:
    """Return the folder with the model and its tokenizer.json; converts only when the cache lacks the folder.

    Safe when several start at once. What is converted is checked before it gets its name in the cache. Raises
    ModelFilesError for a vocabulary that cannot be read, a class of tokenizers without such a form, and a tokenizer
    that does not cut texts as its SentencePiece model does.
    """
    folder = folder.absolute()
    target = cache_dir / "tokenizers" / f"{folder.name}-{_key(folder)}"
    if _is_whole(target):
        log.info("tokenizer was made before", extra={"folder": str(target)})
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        name = _write_tokenizer(folder, made, trust_remote_code=trust_remote_code)
        _link_others(folder, made)
        (made / _DIGEST_FILE).write_text(_digest(made / TOKENIZER_FILE))
        for path in made.iterdir():
            if path.is_file() and not path.is_symlink():
                _flush(path)
        _give_name(made, target)
    log.info("tokenizer made", extra={"folder": str(target), "tokenizer_class": name, "source": str(folder)})
    return target


def _key(folder: Path) -> str:
    """Hex blake2b over the place of the folder, the names in it, and the contents of what a tokenizer is made from."""
    versions = f"v{CONVERTER_VERSION} {transformers.__version__} {tokenizers.__version__}"
    digest = hashlib.blake2b(f"{versions}\n{folder}\n".encode(), digest_size=12)
    for path in _visible(folder):
        digest.update(f"{path.name}\n".encode())
        if path.suffix in _READ_SUFFIXES and path.is_file() and path.stat().st_size <= _MOST_READ_BYTES:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_whole(target: Path) -> bool:
    """Whether the cache has the folder, with the tokenizer.json that was written there."""
    try:
        return (target / _DIGEST_FILE).read_text() == _digest(target / TOKENIZER_FILE)
    except OSError:
        return False


def _write_tokenizer(folder: Path, made: Path, *, trust_remote_code: bool) -> str:
    """Write tokenizer.json and tokenizer_config.json, and return the name of the class. Raises ModelFilesError."""
    with (
        as_model_error(lambda said: ModelFilesError(f"no {TOKENIZER_FILE} can be made for {folder}: {said}")),
        warnings.catch_warnings(),
    ):
        # Marian's class loads the package at its making, and uses the package nowhere.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokens = languages_of(folder, tokenizer)
        if tokens:
            tokenizer = AutoTokenizer.from_pretrained(folder, added_tokens_decoder=tokens)
    name = type(tokenizer).__name__
    check_added_ids(folder, tokenizer)
    if name in PIECE_CLASSES:
        write_piece_tokenizer(folder, made, tokenizer)
        return name
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelFilesError(
            f"{folder} has no {TOKENIZER_FILE}, and none can be made, because only Python code of transformers runs "
            f"the tokenizer {name}: serve another checkpoint of the task"
        )
    _check_pieces(folder, tokenizer, backend)
    tokenizer.save_pretrained(made)
    written = Tokenizer.from_file(str(made / TOKENIZER_FILE))
    for text in CHECK_TEXTS:
        if written.encode(text).ids != tokenizer(text).input_ids:
            raise ModelFilesError(f"the {TOKENIZER_FILE} made for {folder} gives other ids than {name} for {text!r}")
    return name


def _check_pieces(folder: Path, tokenizer: Any, backend: Tokenizer) -> None:
    """Compare with the library that made the vocabulary. Raises ModelFilesError.

    A class that does not fit the model of the file is not noticed by transformers: it spells texts in letters, or lets
    the space before a text fall away.
    """
    path = folder / type(tokenizer).vocab_files_names.get("vocab_file", "")
    if path.suffix != ".model" or not path.is_file():
        return
    with as_model_error(lambda said: ModelFilesError(f"{path} is no SentencePiece model: {said}")):
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    unknown = model.unk_id()

    def known(pieces: list[str]) -> list[str | None]:
        return [None if model.piece_to_id(piece) == unknown else piece for piece in pieces]

    for text in CHECK_TEXTS:
        pieces, wanted = backend.encode(text, add_special_tokens=False).tokens, model.encode(text, out_type=str)
        if known(pieces) != known(wanted):
            raise ModelFilesError(
                f"{folder} has no {TOKENIZER_FILE}, and {type(tokenizer).__name__} of transformers does not read "
                f"{path.name} as SentencePiece does: {text!r} becomes {' '.join(pieces)}, wanted {' '.join(wanted)}. "
                "Name the right tokenizer_class in tokenizer_config.json, or copy the model's tokenizer.json there"
            )


def _link_others(folder: Path, made: Path) -> None:
    """Link the files of the model that were not made anew."""
    for path in _visible(folder):
        if path.name not in _FOLDED_IN and not (made / path.name).exists():
            (made / path.name).symlink_to(path)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _give_name(made: Path, target: Path) -> None:
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if not _is_whole(target):  # somebody emptied or changed the folder
            shutil.rmtree(target)
            os.rename(made, target)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _flush(path: Path) -> None:
    """To the disk, before the folder gets its name: a power cut must not leave a full name on empty files."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
