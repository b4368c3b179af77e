"""Turns a GGUF file into a model folder (safetensors, config, tokenizer) that lies in a content-addressed cache."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_header import GGUF_MAGIC, read_text_values
from textmill_shard.loader.model_files import find_weight_files

log = logging.getLogger(__name__)

# Part of the cache's key: raise it when the same file would convert to something else.
CONVERTER_VERSION = 2
_READ_BYTES = 1 << 22
NAMED_TEMPLATE = "tokenizer.chat_template."

# Names of `tokenizer.ggml.pre` whose tokenizers split digits one by one before the byte-level step.
# transformers' import leaves that step out, and numbers would then get other ids than in training.
DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def convert_gguf(gguf_file: Path, cache_dir: Path, dtype: str = "bfloat16") -> Path:
    """Give the converted folder; converts only when the cache lacks it. Safe when several start at once.

    Raises ModelFilesError when the file is no GGUF file or its architecture cannot be read.
    """
    target = cache_dir / f"{gguf_file.stem}-{_digest(gguf_file)}-{dtype}"
    if target.is_dir():
        find_weight_files(target)  # raises when somebody emptied it
        return target
    started = time.monotonic()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".converting-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        _write_model(gguf_file, folder, dtype=getattr(torch, dtype))
        write_tokenizer(gguf_file, folder)
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


def _digest(gguf_file: Path) -> str:
    """Hex blake2b over the file and the version of this converter."""
    if not gguf_file.is_file():
        raise ModelFilesError(f"{gguf_file} is not a file")
    digest = hashlib.blake2b(f"v{CONVERTER_VERSION}".encode(), digest_size=12)
    with gguf_file.open("rb") as stream:
        block = stream.read(_READ_BYTES)
        if not block.startswith(GGUF_MAGIC):
            raise ModelFilesError(f"{gguf_file} is no GGUF file")
        while block:
            digest.update(block)
            block = stream.read(_READ_BYTES)
    return digest.hexdigest()


def _write_model(gguf_file: Path, folder: Path, *, dtype: torch.dtype) -> None:
    disable_progress_bar()
    try:
        read = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelFilesError(f"{gguf_file} cannot be converted: {error}") from error
    # A model that was read from GGUF refuses to be saved, so its values move into a fresh one of the same config.
    settings: dict[str, Any] = read.config.to_dict()
    for of_the_file in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        settings.pop(of_the_file, None)
    model_type = settings.pop("model_type")
    with init_empty_weights(include_buffers=False):
        fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=dtype)
    fresh.load_state_dict({name: tensor.to(dtype) for name, tensor in read.state_dict().items()}, assign=True)
    fresh.tie_weights()
    fresh.generation_config = GenerationConfig(
        bos_token_id=read.config.bos_token_id,
        eos_token_id=read.config.eos_token_id,
        pad_token_id=read.config.pad_token_id,
    )
    fresh.save_pretrained(folder)


def write_tokenizer(gguf_file: Path, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates of a GGUF file into a folder.

    Raises ModelFilesError for a template whose name can be no file's name.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    values = read_text_values(gguf_file, "tokenizer.")
    if values.get("tokenizer.ggml.pre") in DIGIT_SPLITTING:
        backend = Tokenizer.from_file(str(path))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.save(str(path))
    # The class name that transformers writes is its generic one; the name all versions know is this.
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for of_this_machine in ("name_or_path", "is_local", "local_files_only", "vocab_file"):
        config.pop(of_this_machine, None)
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    _write_further_templates(gguf_file, folder, values)


def _write_further_templates(gguf_file: Path, folder: Path, values: Mapping[str, str]) -> None:
    """Write `tokenizer.chat_template.NAME` where transformers keeps templates that have a name."""
    for key, source in values.items():
        name = key.removeprefix(NAMED_TEMPLATE)
        if name == key:
            continue
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise ModelFilesError(f"{gguf_file} names a chat template {name!r}; letters, digits, `_` and `-` are known")
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(source, encoding="utf-8")


def _flush(path: Path) -> None:
    """To the disk, before the folder gets its name: a power cut must not leave a full name on empty files."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
