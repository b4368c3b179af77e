"""Finds the folders of the LoRA adapters that are asked for, after downloads where they are needed."""

import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from textmill_launcher.adapter_entries import AskedAdapter, read_entry
from textmill_launcher.child_arguments import AdapterFolders, adapter_download_command, download_environment
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import ConflictingSettings, ModelFilesError, NoSuchModel
from textmill_launcher.run_helper import RunHelper
from textmill_launcher.settings import Settings

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

log = logging.getLogger(__name__)


async def find_adapters(
    settings: Settings, base_names: Sequence[str], environ: Mapping[str, str], run_helper: RunHelper
) -> AdapterFolders:
    """Return the folders of all adapters. `base_names` are the names of the base model, which no adapter may have.

    Raises `NoSuchModel`, `ModelFilesError` and `ConflictingSettings`.
    """
    asked = [read_entry(entry) for entry in settings.lora_adapters]
    names: set[str] = set()
    for one in asked:
        if one.name in base_names:
            raise ConflictingSettings(
                f"--lora-adapters: {one.name} is the name of the base model, choose another: NAME={one.place}"
            )
        if one.name in names:
            raise ConflictingSettings(f"--lora-adapters: two adapters have the name {one.name}, wanted different names")
        names.add(one.name)
    start = []
    for one in asked:
        start.append((one.name, await _find(one, "--lora-adapters", settings, environ, run_helper)))
    hub = []
    for entry in settings.lora_hub:
        listed = read_entry(entry)
        if not _HUB_ID.fullmatch(listed.place) or listed.name != listed.place:
            raise NoSuchModel(
                f"--lora-hub: {entry} is no repository of the hub, wanted OWNER/NAME or OWNER/NAME@REVISION"
            )
        hub.append((listed.name, await _fetch(listed, "--lora-hub", settings, environ, run_helper)))
    return AdapterFolders(tuple(start), tuple(hub))


async def _find(
    asked: AskedAdapter, flag: str, settings: Settings, environ: Mapping[str, str], run_helper: RunHelper
) -> Path:
    folder = _local_folder(asked.place)
    if folder is not None:  # local folders win over the hub, as for models
        if asked.revision is not None:
            raise NoSuchModel(f"{flag}: {asked.place} is a folder, which has no revision {asked.revision!r}")
        return check_adapter(folder, f"{flag}: {asked.name}")
    if not _HUB_ID.fullmatch(asked.place):
        raise NoSuchModel(f"{flag}: there is no folder {asked.place}, and it is no hub id (owner/name)")
    return await _fetch(asked, flag, settings, environ, run_helper)


def _local_folder(place: str) -> Path | None:
    folder = Path(place).expanduser()
    return folder.resolve() if folder.is_dir() else None


async def _fetch(
    asked: AskedAdapter, flag: str, settings: Settings, environ: Mapping[str, str], run_helper: RunHelper
) -> Path:
    log.info("fetching the adapter %s%s", asked.place, f" at {asked.revision}" if asked.revision else "")
    command = adapter_download_command(asked.place, asked.revision, [CONFIG_FILE, WEIGHTS_FILE], settings)
    try:
        folder = await run_helper(ChildName("download"), command, download_environment(environ, settings))
    except ModelFilesError as error:
        raise ModelFilesError(f"{flag}: {asked.place}: {error}", error.exit_code) from error
    return check_adapter(Path(folder), f"{flag}: {asked.name}")


def check_adapter(folder: Path, shown: str) -> Path:
    """Return the folder when it has the files of an adapter. Raises `ModelFilesError` with the missing file.

    The shards read and check the files themselves.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            pickled = ""
            if name == WEIGHTS_FILE:
                pickled = (
                    "; adapter_model.bin is never read, because a pickle can run code: load the adapter with PEFT and "
                    "save it with save_pretrained, which writes safetensors"
                )
            raise ModelFilesError(f"{shown}: {folder} holds no {name}{pickled}")
    return folder


def adapter_refusal(folder: Path, model_id: str) -> str | None:
    """Return the refusal of an adapter that was given as --model-id, with the command that serves it, or None."""
    if not (folder / CONFIG_FILE).is_file() or _holds_model(folder):
        return None
    base = shlex.quote(_base_of(folder) or "BASE_MODEL")
    is_local = Path(model_id).expanduser().is_dir()
    adapter = f"{folder.name}={folder}" if is_local else model_id
    return (
        f"--model-id {model_id} is a LoRA adapter and no model: serve its base model with the adapter, by\n"
        f"    launcher --model-id {base} --lora-adapters {shlex.quote(adapter)}"
    )


def _holds_model(folder: Path) -> bool:
    has_weights = any(not path.name.startswith("adapter_model") for path in folder.glob("*.safetensors"))
    return (folder / "config.json").is_file() and (has_weights or any(folder.glob("pytorch_model*.bin")))


def _base_of(folder: Path) -> str | None:
    """Return the base model that the adapter's config names, or None where it names none that could be read."""
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return base if isinstance(base, str) and base.strip() and base.isprintable() else None
