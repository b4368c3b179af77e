"""Finds the config and the tensor headers of a model: in a folder, in the hub's cache, or by range requests."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_launcher.errors import ModelFilesError, UnsupportedTask
from textmill_launcher.model_files import SourceKind, locate_model
from textmill_launcher.plan.model_shape import read_shape
from textmill_launcher.plan.tensor_headers import TensorHeader, read_local_headers
from textmill_launcher.settings import Settings
from textmill_launcher.task_choice import choose_task


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """All that a plan needs to know of a model."""

    name: str
    config: dict[str, Any]
    tensors: list[TensorHeader]


def find_facts(settings: Settings) -> ModelFacts:
    """Return the facts of the model of `--model-id`. No weights are read. Raises `LaunchError` with what to try."""
    source = locate_model(settings.model_id)
    match source.kind:
        case SourceKind.FOLDER:
            task = choose_task(source.path, settings.task)
            if not task.writes_text:
                raise UnsupportedTask(
                    f"{source.model_id} is a model of the task {task.task}, which keeps no keys and values and has one "
                    "shard: a plan is of models that write text. Start it, with --num-replicas for several devices"
                )
            return read_folder(source.path, source.model_id)
        case SourceKind.GGUF:
            return read_folder(_converted(source.path, Path(settings.conversion_cache)), source.model_id)
        case SourceKind.HUB:
            return _ask_hub(source.model_id, settings)


def read_folder(folder: Path, name: str) -> ModelFacts:
    """Return the facts of a local folder. Raises `ModelFilesError`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelFilesError(f"{folder / 'config.json'} holds no object")
    return ModelFacts(name, config, read_local_headers(folder))


def check_heads(folder: Path, num_shard: int) -> None:
    """Raises `CannotDivide` where config.json tells that no shard could load the model. Shards judge all the rest."""
    try:
        shape = read_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ModelFilesError, OSError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return
    shape.check_heads(num_shard)


def _converted(gguf_file: Path, cache: Path) -> Path:
    """Return the newest folder into which the shard has converted a GGUF file. Raises `ModelFilesError`."""
    found = [folder for folder in cache.glob(f"{gguf_file.stem}-*") if (folder / "config.json").is_file()]
    if not found:
        raise ModelFilesError(
            f"{gguf_file.name} has not been converted yet ({cache}), and a plan reads the converted folder: start the "
            "server once, or give a folder with safetensors as --model-id"
        )
    return max(found, key=lambda folder: folder.stat().st_mtime)


def _ask_hub(model_id: str, settings: Settings) -> ModelFacts:
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
    )

    from textmill_launcher.hub_download import exit_code_of, explain

    try:
        config_file = Path(
            hf_hub_download(
                model_id,
                "config.json",
                revision=settings.revision,
                cache_dir=settings.huggingface_hub_cache,
                token=settings.hub_token,
            )
        )
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if constants.HF_HUB_OFFLINE:
            return ModelFacts(model_id, config, read_local_headers(config_file.parent))
        revision = config_file.parent.name  # the commit, so that config and headers are of one state
        metadata = HfApi(token=settings.hub_token).get_safetensors_metadata(model_id, revision=revision)
    except NotASafetensorsRepoError as error:
        raise ModelFilesError(f"{model_id} has no safetensors: {error}") from None
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelFilesError(f"{model_id}: {explain(error, settings.revision)}", exit_code_of(error)) from None
    tensors = [
        TensorHeader(name, tensor.dtype, tuple(tensor.shape))
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    ]
    return ModelFacts(model_id, config, tensors)
