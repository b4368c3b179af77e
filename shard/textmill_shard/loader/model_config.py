"""Facts from config.json: whether the model can be served here, in which dtype, and how long its texts may be."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from textmill_shard.errors import ModelError, ModelFilesError, UnsupportedModelError
from textmill_shard.loader.encoder_facts import reads_with_encoder
from textmill_shard.loader.library_errors import as_model_error, in_one_line
from textmill_shard.loader.model_files import find_weight_files, read_json, read_object
from textmill_shard.probing.state_probe import carries_state

DTYPES = ("float32", "bfloat16", "float16")
_BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")  # as torch names them; the last one on ARM
# Names under which configs keep the longest sequence that the positions allow.
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


def read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    """Return the config of a folder as transformers reads the config.

    Raises ModelFilesError for a folder without a config and for a field whose value is of a type that the field never
    has, and UnsupportedModelError for a config that transformers does not understand.
    """
    path = folder / "config.json"
    if not path.is_file():
        # Raises an error that names what the folder holds instead of a model.
        find_weight_files(folder)
        raise ModelFilesError(f"{folder} has no config.json")
    written = read_json(path)
    for field in ("auto_map", "quantization_config", "text_config"):
        read_object(written, field, path=path)
    own_code = sorted({str(code) for code in (written.get("auto_map") or {}).values()})

    def not_understood(said: str) -> UnsupportedModelError:
        if own_code and not trust_remote_code:
            return UnsupportedModelError(
                f"{folder} brings modelling code of its own ({', '.join(own_code)}), which runs with all the rights of "
                "the shard; read it, and give --trust-remote-code if you trust it"
            )
        return UnsupportedModelError(f"{path} is not understood: {said}")

    with as_model_error(not_understood):
        try:
            # Never None: transformers would ask on the terminal.
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except StrictDataclassFieldValidationError as error:
            raise ModelFilesError(f"{path} has a value of the wrong type: {in_one_line(error)}") from error
        _check_sizes(config.get_text_config(), path)
    return config


def _check_sizes(text_config: Any, path: Path) -> None:
    for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
        size = getattr(text_config, field, None)
        if isinstance(size, int) and size <= 0:
            raise ModelFilesError(f"{path} has {size} as {field}")


def auto_class_of(config: Any, *, takes_images: bool) -> Any:
    """Return the class of transformers that builds the model."""
    if takes_images:
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if reads_with_encoder(config) else AutoModelForCausalLM


def check_divisible(config: Any) -> None:
    """Raises UnsupportedModelError for models that only one shard can serve."""
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
    """Return the dtype. `auto` is, on a CPU, bfloat16 if the CPU computes in bfloat16, and else float32.

    On a GPU `auto` is the dtype in which the checkpoint is stored.
    """
    if asked != "auto":
        if asked not in DTYPES:
            raise ModelError(f"dtype is {asked}, it can be auto, {', '.join(DTYPES)}")
        return asked
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bfloat16" if any(capabilities.get(name) for name in _BF16_CAPABILITIES) else "float32"
    stored = str(getattr(config.get_text_config(), "dtype", None) or "").removeprefix("torch.")
    return stored if stored in ("bfloat16", "float16") else "bfloat16"


def max_model_tokens(config: Any) -> int:
    """Return the longest sequence that the positions allow, in tokens; 0 = unbounded."""
    text_config = config.get_text_config()
    for name in _LENGTH_FIELDS:
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 0
